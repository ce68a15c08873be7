"""How much of the attention a selection of keys keeps, measured on a sample of queries."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from keyekit.batch import Segments
from keyekit_kernels.dsa.reference import indexer_scores

__all__ = ["SampledRows", "attention_mass", "best_keys", "last_keys", "random_keys", "recall", "sample_rows"]

_ELEMENTS = 2**25
"""Most numbers in a product of heads, queries and keys; queries are taken in chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRows:
    """Some queries of a pack and the keys that each of them sees.

    Args:
        queries: ``[R]`` int64 rows of the packed queries.
        first: ``[R]`` int64 the first key that each sees, a row of the packed keys.
        stop: ``[R]`` int64 one past the last key that each sees.
    """

    queries: Tensor
    first: Tensor
    stop: Tensor

    def hides(self, num_keys: int) -> Tensor:
        """``[R, num_keys]`` bool, true where a key is not seen."""
        key = torch.arange(num_keys, device=self.queries.device)
        return (key < self.first[:, None]) | (key >= self.stop[:, None])


def sample_rows(segments: Segments, topk: int, count: int, num_tokens: int) -> SampledRows | None:
    """Choose queries, evenly spread, among those that see more than ``topk`` keys: only they have a choice.

    Args:
        segments: Sequences of the pack.
        topk: Keys selected per query.
        count: Most queries to choose.
        num_tokens: Leading tokens that belong to samples; those after them are not chosen.

    Returns:
        The rows, or ``None`` if there are none.

    Example:
        >>> rows = sample_rows(Segments.of([2, 5]), topk=3, count=8, num_tokens=7)
        >>> rows.queries.tolist(), rows.first.tolist(), rows.stop.tolist()
        ([5, 6], [2, 2], [6, 7])
    """
    return _sample(segments.lengths, segments.key_lengths, topk, count, num_tokens, str(segments.offsets.device))


@lru_cache(maxsize=64)  # all layers of a step ask the same
@torch.inference_mode(False)  # what is sampled while evaluating may be asked for in training
def _sample(
    lengths: tuple[int, ...], key_lengths: tuple[int, ...], topk: int, count: int, num_tokens: int, device: str
) -> SampledRows | None:
    stretches = _stretches(lengths, key_lengths, topk, num_tokens)
    ends = list(accumulate(stretch.number for stretch in stretches))
    total = ends[-1] if ends else 0
    taken = min(count, total)
    if not taken:
        return None
    rows = []
    for sample in range(taken):
        place = (2 * sample + 1) * total // (2 * taken)
        stretch = stretches[bisect_right(ends, place)]
        ahead = place - (ends[bisect_right(ends, place)] - stretch.number)
        rows.append((stretch.query + ahead, stretch.first, stretch.stop + ahead))
    queries, first, stop = torch.tensor(rows).to(device).unbind(dim=1)
    return SampledRows(queries=queries, first=first, stop=stop)


class _Stretch(NamedTuple):
    """Adjacent queries of a sequence that have a choice."""

    number: int
    query: int  # the first of them
    first: int  # the first key that they see
    stop: int  # one past the last key that the first of them sees


def _stretches(lengths: tuple[int, ...], key_lengths: tuple[int, ...], topk: int, num_tokens: int) -> list[_Stretch]:
    stretches = []
    start = key_start = 0
    for queries, keys in zip(lengths, key_lengths, strict=True):
        before = keys - queries  # the first query sees one key more
        skipped = max(topk - before, 0)
        number = min(queries, num_tokens - start) - skipped
        if number > 0:
            stretches.append(_Stretch(number, start + skipped, key_start, key_start + before + skipped + 1))
        start, key_start = start + queries, key_start + keys
    return stretches


@torch.no_grad()
def attention_mass(query: Tensor, key: Tensor, rows: SampledRows, scale: float) -> Tensor:
    """Mean over heads of the dense causal attention of the sampled queries: what an indexer should imitate.

    Args:
        query: ``[T, H, K]`` packed queries.
        key: ``[S, G, K]`` packed keys.
        rows: The queries to look at.
        scale: Factor on the dot products.

    Returns:
        ``[R, S]`` float32 or wider; every row adds up to 1.
    """
    num_keys, groups, _ = key.shape
    wide = torch.promote_types(query.dtype, torch.float32)
    hidden, parts = rows.hides(num_keys), []
    with torch.autocast(query.device.type, enabled=False):
        for part in _chunks(rows, query.shape[1] * num_keys):
            heads = query[rows.queries[part]].to(wide).unflatten(1, (groups, -1))
            logits = torch.einsum("tgjk,sgk->tgjs", heads, key.to(wide)) * scale
            parts.append(logits.masked_fill(hidden[part, None, None], -torch.inf).softmax(dim=-1).mean(dim=(1, 2)))
    return torch.cat(parts)


@torch.no_grad()
def best_keys(query: Tensor, key: Tensor, gate: Tensor, rows: SampledRows, topk: int) -> Tensor:
    """The keys that an indexer would select for the sampled queries.

    Args:
        query: ``[T, I, indexer_dim]`` packed indexer queries.
        key: ``[S, indexer_dim]`` packed indexer keys.
        gate: ``[T, I]``.
        rows: The queries to look at.
        topk: Keys to select.

    Returns:
        ``[R, topk]`` int64 rows of the keys, in no order; ties are broken in any way.
    """
    hidden, parts = rows.hides(key.shape[0]), []
    with torch.autocast(query.device.type, enabled=False):
        for part in _chunks(rows, query.shape[1] * key.shape[0]):
            queries = rows.queries[part]
            scores = indexer_scores(query[queries], key, gate[queries])
            parts.append(scores.masked_fill(hidden[part], -torch.inf).topk(topk, dim=-1).indices)
    return torch.cat(parts)


def last_keys(rows: SampledRows, topk: int) -> Tensor:
    """The ``topk`` keys before each query, itself included: what a sliding window of that size selects ``[R, topk]``."""
    return rows.stop[:, None] - 1 - torch.arange(topk, device=rows.stop.device)


def random_keys(rows: SampledRows, topk: int, num_keys: int, generator: torch.Generator | None = None) -> Tensor:
    """``topk`` different keys that each query sees, all equally likely ``[R, topk]``."""
    hidden = rows.hides(num_keys)
    drawn = torch.rand(hidden.shape, generator=generator, device=hidden.device)
    return drawn.masked_fill(hidden, -1.0).topk(topk, dim=-1).indices


def recall(mass: Tensor, selection: Tensor, topk: int) -> Tensor:
    """Attention that the selected keys hold, over what the best ``topk`` keys hold; mean over the queries.

    Args:
        mass: ``[R, S]`` from :func:`attention_mass`.
        selection: ``[R, N]`` different rows of the keys, -1 for none.
        topk: Keys that the attention's own choice may have.

    Returns:
        Scalar from 0 to 1.

    Example:
        >>> recall(torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0, 2]]), topk=2).item()
        0.875
    """
    held = mass.gather(1, selection.clamp(min=0).long()).masked_fill(selection < 0, 0.0).sum(dim=1)
    best = mass.topk(topk, dim=1).values.sum(dim=1)
    return (held / best).mean()


def _chunks(rows: SampledRows, width: int) -> list[slice]:
    """Ranges of the rows, ``width`` numbers each row."""
    size, total = max(_ELEMENTS // max(width, 1), 1), rows.queries.shape[0]
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
