"""Scaled dot-product attention over packed segments."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from keyekit.batch import Segments

__all__ = ["segmented_attention"]

_PADDING = 1.25
"""Segments share a padded call when the longest is at most this much longer than the shortest."""


def segmented_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, causal: bool, scale: float | None = None
) -> Tensor:
    """Attend inside every segment and never across; exact for any mixture of lengths.

    Segments of similar length run together as one batched call, so that thousands of frames cost a few calls.

    Args:
        query: ``[T, H, K]`` packed queries.
        key: ``[S, G, K]`` packed keys; ``G`` divides ``H``.
        value: ``[S, G, K]`` packed values.
        segments: Lengths of queries and keys.
        causal: Whether a query sees only keys up to its own position (aligned to the end of the segment).
        scale: Factor on the dot products, ``K ** -0.5`` by default.

    Returns:
        ``[T, H, K]``.
    """
    if _is_uniform(segments):
        return _uniform(query, key, value, segments, causal, scale)
    plan = _plan(segments.lengths, segments.key_lengths, causal, str(query.device))
    outputs = []
    for group in plan.groups:
        attended = _attend(
            query[group.rows], key[group.columns], value[group.columns], group.mask, group.triangular, scale
        )
        outputs.append(attended.flatten(0, 1)[group.valid])
    packed = torch.cat(outputs)
    return packed if plan.order is None else packed[plan.order]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> Tensor:
    """Batched attention of ``[N, L, heads, K]`` tensors."""
    return functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    ).transpose(1, 2)


def _is_uniform(segments: Segments) -> bool:
    return segments.is_square and len(segments) > 0 and min(segments.lengths) == segments.maximum > 0


def _uniform(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, causal: bool, scale: float | None
) -> Tensor:
    """All segments are equally long: a view is enough."""
    shape = (len(segments), segments.maximum)
    attended = _attend(
        query.unflatten(0, shape), key.unflatten(0, shape), value.unflatten(0, shape), None, causal, scale
    )
    return attended.flatten(0, 1)


class _Group(NamedTuple):
    """Segments that run in one padded call."""

    rows: Tensor  # [N, queries] packed rows, padded by repeating the last
    columns: Tensor  # [N, keys] packed columns, likewise
    valid: Tensor  # which of the N * queries results are real
    mask: Tensor | None  # [N, 1, queries, keys] of allowed pairs
    triangular: bool  # square and causal: padding on the right needs no mask, a real query never reaches a padded key


class _Plan(NamedTuple):
    groups: list[_Group]
    order: Tensor | None  # brings the groups' results back into packed order


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a plan made while evaluating is used in training too
def _plan(lengths: tuple[int, ...], key_lengths: tuple[int, ...], causal: bool, device: str) -> _Plan:
    starts, key_starts = _starts(lengths), _starts(key_lengths)
    groups, rows_in_order = [], []
    for members in _similar(lengths, key_lengths):
        padded = max(lengths[m] for m in members)
        padded_keys = max(key_lengths[m] for m in members)
        count = torch.tensor([lengths[m] for m in members])[:, None]
        key_count = torch.tensor([key_lengths[m] for m in members])[:, None]
        row, column = torch.arange(padded)[None], torch.arange(padded_keys)[None]
        rows = torch.tensor([starts[m] for m in members])[:, None] + row.minimum(count - 1)
        columns = torch.tensor([key_starts[m] for m in members])[:, None] + column.minimum(key_count - 1)
        valid = (row < count).flatten().nonzero().flatten()
        rows_in_order.append(rows.flatten()[valid])
        triangular = causal and bool((count == key_count).all())
        mask = None if triangular else _mask(count, key_count, row, column, causal)
        on_device = (rows.to(device), columns.to(device), valid.to(device), None if mask is None else mask.to(device))
        groups.append(_Group(*on_device, triangular))
    written = torch.cat(rows_in_order)
    in_order = bool((written[1:] > written[:-1]).all())
    return _Plan(groups, None if in_order else written.argsort().to(device))


def _mask(count: Tensor, key_count: Tensor, row: Tensor, column: Tensor, causal: bool) -> Tensor | None:
    """``[N, 1, rows, columns]`` of allowed pairs, or ``None`` if all are."""
    allowed = (column < key_count)[:, None, :].expand(-1, row.shape[1], -1)
    if causal:
        last = row[:, :, None] + (key_count - count)[:, :, None]
        allowed = allowed & ((column[:, None, :] <= last) | (row >= count)[:, :, None])
    return None if bool(allowed.all()) else allowed[:, None]


def _similar(lengths: tuple[int, ...], key_lengths: tuple[int, ...]) -> list[list[int]]:
    """Group non-empty segments whose padded size stays near their own, shortest first."""
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (key_lengths[i], lengths[i]))
    groups: list[list[int]] = []
    for index in order:
        first = groups[-1][0] if groups else None
        if first is not None and key_lengths[index] <= _PADDING * key_lengths[first] + 8:
            groups[-1].append(index)
        else:
            groups.append([index])
    return [sorted(group) for group in groups]


def _starts(lengths: tuple[int, ...]) -> list[int]:
    starts, total = [], 0
    for length in lengths:
        starts.append(total)
        total += length
    return starts
