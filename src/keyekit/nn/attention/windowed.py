"""Banded attention over packed segments: each query sees its last few keys, in time and memory linear in the length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.attention.base import CacheGroup, LayerCache
from keyekit.nn.attention.padded import repeated_last, similar

__all__ = ["cached_windowed_attention", "chunk_length", "computed_pairs", "windowed_attention", "windowed_pairs"]

_SMALLEST_CHUNK = 64
"""Shorter chunks would waste less on narrow windows, but make many small products."""


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    *,
    window: int,
    sinks: int = 0,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Attend to the last ``window`` keys and the first ``sinks`` keys of the own segment; exact for any mixture of lengths.

    Queries are cut into chunks at least as long as window and sinks together, so that a chunk needs its own keys, those of the
    chunk before and the sinks, and all chunks but the first share one mask.

    Args:
        query: ``[T, H, K]`` packed queries.
        key: ``[S, G, K]`` packed keys; ``G`` divides ``H``.
        value: ``[S, G, K]`` packed values.
        segments: Lengths of queries and keys.
        window: Keys that a query sees up to and with its own.
        sinks: Keys at the beginning of a segment that all its queries see.
        sink_logits: ``[H]`` logits of a key without value that every query sees too, or ``None``.

    Returns:
        ``[T, H, K]``.
    """
    if segments.total == 0:
        return query
    plan = _plan(segments.lengths, segments.key_lengths, window, sinks, str(query.device))
    outputs = []
    for group in plan.groups:
        own_key, own_value = key[group.own], value[group.own]
        chunks = query[group.rows].unflatten(1, (-1, group.chunk))
        first_key = torch.cat([key[group.before], own_key[:, : group.chunk]], dim=1)
        first_value = torch.cat([value[group.before], own_value[:, : group.chunk]], dim=1)
        parts = [_attend(chunks[:, 0], first_key, first_value, group.first_mask, sink_logits)[:, None]]
        if group.mask is not None:
            later = _attend(
                chunks[:, 1:].flatten(0, 1),
                _with_chunk_before(own_key, key[group.sinks], group.chunk),
                _with_chunk_before(own_value, value[group.sinks], group.chunk),
                group.mask,
                sink_logits,
            )
            parts.append(later.unflatten(0, (len(chunks), -1)))
        outputs.append(torch.cat(parts, dim=1).flatten(0, 2)[group.valid])
    packed = torch.cat(outputs)
    return packed if plan.order is None else packed[plan.order]


def cached_windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: LayerCache,
    segments: Segments,
    *,
    window: int,
    sinks: int = 0,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Store new keys and values, then attend; one new token per sequence reads its window and nothing else of the cache.

    Args:
        query: ``[T, H, K]`` queries of the new tokens.
        key: ``[T, G, K]`` their keys.
        value: ``[T, G, K]`` their values.
        cache: The layer's cache.
        segments: New tokens and stored tokens of each sequence.
        window: As in :func:`windowed_attention`, likewise the others.
        sinks: Keys at the beginning of a sequence.
        sink_logits: ``[H]`` or ``None``.

    Returns:
        ``[T, H, K]``.
    """
    if segments.is_square or not cache.step.groups:
        key = cache.extend("key", key, segments)
        value = cache.extend("value", value, segments)
        return windowed_attention(query, key, value, segments, window=window, sinks=sinks, sink_logits=sink_logits)
    cache.append("key", key)
    cache.append("value", value)
    parts = []
    for part, group in zip(cache.step.split(query), cache.step.groups, strict=True):
        places = _places(group, window, sinks)
        keys, values = (_take(cache.stored(name, group), places, group, window) for name in ("key", "value"))
        mask = None if places is None else places.visible
        attended = _attend(part[:, None], keys.transpose(1, 2), values.transpose(1, 2), mask, sink_logits)
        parts.append(attended[:, 0])
    return cache.step.join(parts)


def windowed_pairs(queries: int, keys: int, window: int, sinks: int = 0) -> int:
    """Pairs of a query and a key that it sees; the queries are the last of the ``keys`` positions.

    Example:
        >>> windowed_pairs(4, 4, window=2), windowed_pairs(4, 4, window=2, sinks=1), windowed_pairs(1, 9, window=20)
        (7, 9, 9)
    """
    reach, earlier = window + sinks, keys - queries
    growing = min(max(reach - earlier, 0), queries)  # queries that see everything before them
    return growing * earlier + growing * (growing + 1) // 2 + (queries - growing) * reach


def chunk_length(window: int, sinks: int = 0) -> int:
    """Queries of a chunk in a segment of more than one."""
    return max(window + sinks, _SMALLEST_CHUNK)


def computed_pairs(
    lengths: tuple[int, ...], key_lengths: tuple[int, ...], window: int, sinks: int = 0, extra: int = 0
) -> int:
    """Pairs that :func:`windowed_attention` really multiplies: whole chunks, masked pairs included.

    Args:
        lengths: Queries of each segment.
        key_lengths: Keys of each segment.
        window: As there.
        sinks: As there.
        extra: Keys that every query sees besides, such as that of sink logits.
    """
    total = 0
    for members in _similar(lengths, key_lengths, window + sinks):
        shape = _shape([lengths[m] for m in members], [key_lengths[m] for m in members], window, sinks)
        first = shape.before + shape.chunk + extra
        later = (shape.chunks - 1) * (sinks + 2 * shape.chunk + extra)
        total += len(members) * shape.chunk * (first + later)
    return total


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sink_logits: Tensor | None) -> Tensor:
    """Attention of ``[N, L, heads, K]`` tensors under ``mask [N or 1, L, X]``."""
    width, grouped = query.shape[-1], query.shape[2] != key.shape[2]
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    allowed = None if mask is None else mask[:, None]
    if sink_logits is not None:
        query, key, value = _with_sink(query, key, value, sink_logits)
        allowed = None if allowed is None else functional.pad(allowed, (0, 1), value=True)
    attended = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=width**-0.5, enable_gqa=grouped
    )
    return attended[..., :width].transpose(1, 2)


def _with_sink(query: Tensor, key: Tensor, value: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Append a key without value whose logit is that of each head, for fused attention that knows no such thing.

    Heads grow by eight places (what kernels want), of which one is used: the logit in queries, one in the new key and zero in
    all others.
    """
    width = query.shape[-1]
    place = torch.zeros(8, dtype=query.dtype, device=query.device)
    place[0] = 1.0
    logit = (logits * width**0.5).to(query.dtype)[:, None, None] * place
    query = torch.cat([query, logit.expand(*query.shape[:-1], 8)], dim=-1)
    row = functional.pad(place, (width, 0)).expand(*key.shape[:2], 1, -1)
    key = torch.cat([functional.pad(key, (0, 8)), row], dim=2)
    return query, key, functional.pad(value, (0, 8, 0, 1))


def _with_chunk_before(own: Tensor, sinks: Tensor, chunk: int) -> Tensor:
    """Keys of every chunk but the first: sinks, chunk before, own chunk; ``[N * (chunks - 1), sinks + 2 * chunk, G, K]``."""
    chunks = own.unflatten(1, (-1, chunk))
    repeated = sinks[:, None].expand(-1, chunks.shape[1] - 1, -1, -1, -1)
    return torch.cat([repeated, chunks[:, :-1], chunks[:, 1:]], dim=2).flatten(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where the keys of one new token stand among those stored of its sequence."""

    columns: Tensor  # [count, sinks + window]
    visible: Tensor  # [count, 1, sinks + window]


def _places(group: CacheGroup, window: int, sinks: int) -> _Places | None:
    """``None`` if all sequences are equally long and need no choice, or the same one."""
    if group.mask is None and (sinks == 0 or group.longest <= window):
        return None
    length = group.lengths[:, None]
    band = length - window + torch.arange(window, device=length.device)
    first = torch.arange(sinks, device=length.device).expand(len(length), -1)
    visible = torch.cat([first < length - window, band >= 0], dim=1)
    return _Places(columns=torch.cat([first, band.clamp(min=0)], dim=1), visible=visible[:, None])


def _take(stored: Tensor, places: _Places | None, group: CacheGroup, window: int) -> Tensor:
    """``[count, G, keys, K]`` of ``stored [count, G, longest, K]``."""
    if places is None:
        start = max(group.longest - window, 0)
        return stored.narrow(2, start, group.longest - start)
    index = places.columns.clamp(max=group.longest - 1)[:, None, :, None]
    return stored.gather(2, index.expand(-1, stored.shape[1], -1, stored.shape[3]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """How a group of segments is cut."""

    chunk: int  # queries of a chunk
    chunks: int
    sinks: int  # columns of sinks before the first chunk
    band: int  # columns of earlier keys before the first chunk

    @property
    def before(self) -> int:
        return self.sinks + self.band


def _shape(lengths: list[int], key_lengths: list[int], window: int, sinks: int) -> _Shape:
    chunk = min(chunk_length(window, sinks), max(lengths))
    earlier = max(keys - queries for queries, keys in zip(lengths, key_lengths, strict=True))
    return _Shape(
        chunk=chunk,
        chunks=-(-max(lengths) // chunk),
        sinks=sinks if earlier else 0,
        band=min(window - 1, earlier),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Segments that run in one padded call for their first chunks and one for all others."""

    chunk: int
    rows: Tensor  # [N, chunks * chunk] packed rows of the queries, padded by repeating the last
    own: Tensor  # [N, chunks * chunk] packed rows of the keys at the queries' positions, likewise
    before: (
        Tensor  # [N, before] packed rows of the keys that the first chunk sees of earlier ones: sinks, then the band
    )
    sinks: Tensor  # [N, sinks] packed rows of the first keys
    first_mask: Tensor  # [N or 1, chunk, before + chunk]
    mask: Tensor | None  # [1, chunk, sinks + 2 * chunk] of all other chunks, None if there are none
    valid: Tensor  # which of the N * chunks * chunk results are real


@dataclass(frozen=True, slots=True)
class _Plan:
    groups: list[_Group]
    order: Tensor | None  # brings the groups' results back into packed order


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a plan made while evaluating is used in training too
def _plan(lengths: tuple[int, ...], key_lengths: tuple[int, ...], window: int, sinks: int, device: str) -> _Plan:
    starts, key_starts = (0, *accumulate(lengths)), (0, *accumulate(key_lengths))
    groups, written = [], []
    for members in _similar(lengths, key_lengths, window + sinks):
        queries, keys = [lengths[m] for m in members], [key_lengths[m] for m in members]
        shape = _shape(queries, keys, window, sinks)
        row = torch.arange(shape.chunks * shape.chunk)
        rows, valid = repeated_last([starts[m] for m in members], queries, len(row))
        written.append(rows.flatten()[valid])
        key_count = torch.tensor(keys)[:, None]
        key_start = torch.tensor([key_starts[m] for m in members])[:, None]
        count = torch.tensor(queries)[:, None]
        first = key_count - count  # position of the first query
        sink = torch.arange(sinks)[None]
        band = first - shape.band + torch.arange(shape.band)
        before = torch.cat([sink[:, : shape.sinks].expand(len(members), -1), band], dim=1)
        groups.append(
            _Group(
                chunk=shape.chunk,
                rows=rows.to(device),
                own=(key_start + (first + row).minimum(key_count - 1)).to(device),
                before=(key_start + before.clamp(min=0).minimum(key_count - 1)).to(device),
                sinks=(key_start + sink.minimum(key_count - 1)).to(device),
                first_mask=_first_mask(first, band, shape, window, sinks).to(device),
                mask=_later_mask(shape.chunk, window, sinks).to(device) if shape.chunks > 1 else None,
                valid=valid.to(device),
            )
        )
    packed = torch.cat(written)
    in_order = bool((packed[1:] > packed[:-1]).all())
    return _Plan(groups, None if in_order else packed.argsort().to(device))


def _first_mask(first: Tensor, band: Tensor, shape: _Shape, window: int, sinks: int) -> Tensor:
    """``[N or 1, chunk, before + chunk]``: which of sinks, earlier keys and own chunk a query of the first chunk sees."""
    if not bool(first.any()):
        first, band = first[:1], band[:1]  # nothing comes before: one mask for all
    own = first + torch.arange(shape.chunk)
    position = own[:, :, None]
    key_position = torch.cat([band, own], dim=1)[:, None, :]
    in_band = (key_position > position - window) | (key_position < sinks)
    seen = (key_position >= 0) & (key_position <= position) & in_band
    # A sink is seen in its own column unless the columns behind it hold it too.
    apart = (torch.arange(shape.sinks) < first - shape.band)[:, None, :]
    return torch.cat([apart.expand(-1, shape.chunk, -1), seen], dim=2)


def _later_mask(chunk: int, window: int, sinks: int) -> Tensor:
    """``[1, chunk, sinks + 2 * chunk]``: all sinks, then the band within the chunk before and the own one."""
    position = torch.arange(chunk, 2 * chunk)[:, None]
    key_position = torch.arange(2 * chunk)
    band = (key_position <= position) & (key_position > position - window)
    return torch.cat([torch.ones(chunk, sinks, dtype=torch.bool), band], dim=1)[None]


def _similar(lengths: tuple[int, ...], key_lengths: tuple[int, ...], reach: int) -> list[list[int]]:
    """Segments whose padded size stays near their own; of the keys before the queries those count that are in reach."""
    return similar([(queries, min(keys - queries, reach)) for queries, keys in zip(lengths, key_lengths, strict=True)])
