"""What the attention kernels share: the rows of a tile, the keys that it gathers, and the online softmax over them.

Token and key numbers become int64 before anything multiplies them: 256K tokens of 32 heads of 128 already are 2^30 numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "EMPTY",
    "LN2",
    "LOG2E",
    "fold_keys",
    "gather_keys",
    "is_selected",
    "query_rows",
    "softmax_result",
    "union_keys",
    "union_rows",
]

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
EMPTY = tl.constexpr(-1e30)  # finite, so that a row without keys stays free of NaN


@triton.jit
def query_rows(token, group, num_groups, PER_GROUP: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr) -> tuple:
    """The heads of one query in a group as rows: which exist, their places in ``[T, H]`` and in ``[T, H, WIDTH]``."""
    row = tl.arange(0, ROWS)
    head = token.to(tl.int64) * num_groups * PER_GROUP + group * PER_GROUP + row
    return row < PER_GROUP, head, head[:, None] * WIDTH + tl.arange(0, WIDTH)


@triton.jit
def union_rows(
    first,
    size,
    block,
    part,
    group,
    num_groups,
    PER_GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
) -> tuple:
    """(query, head) pairs of part of a block as rows: their bit in the masks, then as :func:`query_rows`."""
    row = tl.arange(0, QUERIES * PADDED)
    bit = part * QUERIES + row // PADDED
    real = (row % PADDED < PER_GROUP) & (bit < tl.load(size + block))
    token = tl.load(first + block).to(tl.int64) + bit
    head = token * num_groups * PER_GROUP + group * PER_GROUP + row % PADDED
    return bit, real, head, head[:, None] * WIDTH + tl.arange(0, WIDTH)


@triton.jit
def gather_keys(key, value, index, there, group, num_groups, WIDTH: tl.constexpr) -> tuple:
    """Rows ``index [N]`` of a group's keys and values: their places in ``[S, G, WIDTH]``, keys, values."""
    place = ((index.to(tl.int64) * num_groups + group) * WIDTH)[:, None] + tl.arange(0, WIDTH)
    k = tl.load(key + place, mask=there[:, None], other=0.0)
    v = tl.load(value + place, mask=there[:, None], other=0.0)
    return place, k, v


@triton.jit
def is_selected(masks, bit) -> tl.tensor:
    """Whether the query of each row selected the key of each column: its bit, moved to where the sign is."""
    return (masks[None, :] << (31 - bit)[:, None]) < 0


@triton.jit
def union_keys(
    key,
    value,
    keys,
    masks,
    start,
    count,
    group,
    num_groups,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
) -> tuple:
    """A tile of a block's union: bit masks, keys and values of a group. Behind the last key it is repeated, selected by nobody.

    ``WIDE`` makes offsets int64, which costs registers: for tensors of 2^31 numbers and more.
    """
    column = start + tl.arange(0, BLOCK)
    slot = tl.minimum(column, count - 1)
    index = tl.load(keys + slot)
    bits = tl.where(column < count, tl.load(masks + slot), 0)
    if WIDE:
        index = index.to(tl.int64)
    place = index[:, None] * (num_groups * WIDTH) + tl.arange(0, WIDTH)
    at = group * WIDTH
    return bits, tl.load(key + at + place), tl.load(value + at + place)


@triton.jit
def fold_keys(state, query, key, value, allowed, scale) -> tuple:
    """One step of the online softmax: fold a tile of keys into (peak, total, mixed), all in powers of two."""
    peak, total, mixed = state
    logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    logits = tl.where(allowed, logits, EMPTY)
    higher = tl.maximum(peak, tl.max(logits, 1))
    weights = tl.where(allowed, tl.exp2(logits - higher[:, None]), 0.0)
    shrink = tl.exp2(peak - higher)
    total = total * shrink + tl.sum(weights, 1)
    mixed = mixed * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return higher, total, mixed


@triton.jit
def softmax_result(state) -> tuple:
    """Output and natural log-sum-exp; zeros and -1e30 for a row without keys."""
    peak, total, mixed = state
    empty = total == 0.0
    safe = tl.where(empty, 1.0, total)
    return mixed / safe[:, None], tl.where(empty, EMPTY, (peak + tl.log2(safe)) * LN2)
