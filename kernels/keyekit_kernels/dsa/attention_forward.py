"""Triton kernels of grouped-query attention over selected keys: forward, query by query and over unions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.attention_tiles import (
    EMPTY,
    LOG2E,
    fold_keys,
    gather_keys,
    is_selected,
    query_rows,
    softmax_result,
    union_keys,
    union_rows,
)
from keyekit_kernels.dsa.launch import launch_for, next_power_of_two
from keyekit_kernels.dsa.union import Union

__all__ = ["query_forward", "union_forward"]

# Sums between these kept every weight that matters: smaller ones than 2^-126 were flushed, and add less than one rounding.
LEAST, MOST = tl.constexpr(1e-15), tl.constexpr(1e27)


@triton.jit
def query_forward_kernel(
    query,  # [T, H, WIDTH]
    key,  # [S, G, WIDTH]
    value,  # [S, G, WIDTH]
    indices,  # [T, N] int32, ascending, -1 tail
    counts,  # [T] int32
    output,  # [T, H, WIDTH]
    lse,  # [T, H] float32
    num_selected,
    num_groups,
    scale,  # times log2(e)
    PER_GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per query and group: its heads are the rows of a tile, padded to a tensor core's sixteen."""
    token, group, column = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    real, head, heads = query_rows(token, group, num_groups, PER_GROUP, ROWS, WIDTH)
    q = tl.load(query + heads, mask=real[:, None], other=0.0)
    state = tl.full([ROWS], EMPTY, tl.float32), tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    count = tl.load(counts + token)
    for start in range(0, count, BLOCK):
        chosen = start + column < count
        index = tl.load(indices + token * num_selected + start + column, mask=chosen, other=0)
        _, k, v = gather_keys(key, value, index, chosen, group, num_groups, WIDTH)
        state = fold_keys(state, q, k, v, chosen[None, :] & real[:, None], scale)
    mixed, row_lse = softmax_result(state)
    tl.store(output + heads, mixed.to(output.dtype.element_ty), mask=real[:, None])
    tl.store(lse + head, row_lse, mask=real)


@triton.jit
def _steady_softmax(
    state,
    query,
    key,
    value,
    keys,
    masks,
    bit,
    count,
    group,
    num_groups,
    scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
) -> tuple:
    """Sums of exponentials beside a fixed reference, the largest logit of the first tile, selected or not.

    Nothing is rescaled on the way, so products stay in flight from one tile to the next. Powers of two reach from 2^-126 to
    2^127: the caller looks at the total whether that was enough.
    """
    _, _, mixed = state
    _, k, _ = union_keys(key, value, keys, masks, 0, count, group, num_groups, WIDTH, BLOCK, WIDE)
    peak = tl.max(tl.dot(query, tl.trans(k), input_precision="ieee"), 1) * scale
    weights = tl.zeros([query.shape[0], BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        bits, k, v = union_keys(key, value, keys, masks, start, count, group, num_groups, WIDTH, BLOCK, WIDE)
        logits = tl.dot(query, tl.trans(k), input_precision="ieee") * scale - peak[:, None]
        tile = tl.exp2(tl.where(is_selected(bits, bit), logits, EMPTY))
        weights += tile
        mixed = tl.dot(tile.to(v.dtype), v, mixed, input_precision="ieee")
    return peak, tl.sum(weights, 1), mixed


@triton.jit
def _online_softmax(
    state,
    query,
    key,
    value,
    keys,
    masks,
    bit,
    count,
    group,
    num_groups,
    scale,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
) -> tuple:
    """The same with a running maximum, whatever the logits are."""
    for start in range(0, count, BLOCK):
        bits, k, v = union_keys(key, value, keys, masks, start, count, group, num_groups, WIDTH, BLOCK, WIDE)
        state = fold_keys(state, query, k, v, is_selected(bits, bit), scale)
    return state


@triton.jit
def union_forward_kernel(
    query,  # [T, H, WIDTH]
    key,  # [S, G, WIDTH]
    value,  # [S, G, WIDTH]
    keys,  # [U] int32
    masks,  # [U] int32
    starts,  # [blocks + 1] int64
    first,  # [blocks] int32
    size,  # [blocks] int32
    output,  # [T, H, WIDTH]
    lse,  # [T, H] float32
    num_groups,
    scale,  # times log2(e)
    PER_GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """One program per ``QUERIES`` of a block and group: rows are (query, head), and a bit says who selected which key."""
    block, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    group = tl.program_id(1)
    bit, real, head, heads = union_rows(first, size, block, part, group, num_groups, PER_GROUP, PADDED, QUERIES, WIDTH)
    q = tl.load(query + heads, mask=real[:, None], other=0.0)
    begin = tl.load(starts + block)
    count = (tl.load(starts + block + 1) - begin).to(tl.int32)
    keys += begin
    masks += begin
    ROWS: tl.constexpr = QUERIES * PADDED
    peak = tl.full([ROWS], EMPTY, tl.float32)
    state = peak, tl.zeros([ROWS], tl.float32), tl.zeros([ROWS, WIDTH], tl.float32)
    if count > 0:
        # Weights in float16 end at 65504; in the other types they reach as far as the sums.
        if value.dtype.element_ty == tl.float16:
            state = _online_softmax(
                state, q, key, value, keys, masks, bit, count, group, num_groups, scale, WIDTH, BLOCK, WIDE
            )
        else:
            steady = _steady_softmax(
                state, q, key, value, keys, masks, bit, count, group, num_groups, scale, WIDTH, BLOCK, WIDE
            )
            fine = (steady[1] > LEAST) & (steady[1] < MOST)  # false for NaN
            if tl.min((fine | (real == 0)).to(tl.int32), 0) == 0:
                steady = _online_softmax(
                    state, q, key, value, keys, masks, bit, count, group, num_groups, scale, WIDTH, BLOCK, WIDE
                )
            state = steady
    mixed, row_lse = softmax_result(state)
    tl.store(output + heads, mixed.to(output.dtype.element_ty), mask=real[:, None])
    tl.store(lse + head, row_lse, mask=real)


def query_forward(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, counts: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attend query by query.

    Args:
        query: ``[T, H, K]`` contiguous.
        key: ``[S, G, K]`` contiguous.
        value: ``[S, G, K]`` contiguous.
        indices: ``[T, N]`` int32 rows of the keys, ascending, -1 tail.
        counts: ``[T]`` int32 keys selected by each query.
        scale: Factor on the dot products.

    Returns:
        Output ``[T, H, K]`` and natural log-sum-exp ``[T, H]`` float32.
    """
    output, lse = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)
    num_tokens, num_heads, width = query.shape
    groups = key.shape[1]
    launch = launch_for("query forward", width, takes_small_tiles(query))
    if num_tokens:
        query_forward_kernel[(num_tokens, groups)](
            query,
            key,
            value,
            indices,
            counts,
            output,
            lse,
            indices.shape[1],
            groups,
            scale * LOG2E.value,
            PER_GROUP=num_heads // groups,
            ROWS=max(next_power_of_two(num_heads // groups), 16),
            WIDTH=width,
            BLOCK=launch.block,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )
    return output, lse


def union_forward(query: Tensor, key: Tensor, value: Tensor, union: Union, scale: float) -> tuple[Tensor, Tensor]:
    """Attend block by block over the union of their queries' keys; same result as :func:`query_forward`.

    Args:
        query: ``[T, H, K]`` contiguous.
        key: ``[S, G, K]`` contiguous.
        value: ``[S, G, K]`` contiguous.
        union: Selections of blocks of adjacent queries.
        scale: Factor on the dot products.

    Returns:
        Output ``[T, H, K]`` and natural log-sum-exp ``[T, H]`` float32.
    """
    output, lse = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)
    _, num_heads, width = query.shape
    groups = key.shape[1]
    launch = launch_for("union forward", width, takes_small_tiles(query))
    queries, padded = rows_of(launch.queries, union.group, num_heads // groups)
    parts = -(-union.group // queries)
    if union.num_blocks:
        union_forward_kernel[(union.num_blocks * parts, groups)](
            query,
            key,
            value,
            union.keys,
            union.masks,
            union.starts,
            union.first,
            union.size,
            output,
            lse,
            groups,
            scale * LOG2E.value,
            PER_GROUP=num_heads // groups,
            PADDED=padded,
            QUERIES=queries,
            PARTS=parts,
            WIDTH=width,
            BLOCK=launch.block,
            WIDE=needs_wide_offsets(key),
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )
    return output, lse


def needs_wide_offsets(tensor: Tensor) -> bool:
    """Whether offsets inside a tensor outgrow 32 bits."""
    return tensor.numel() >= 2**31


def rows_of(wanted: int, group: int, per_group: int) -> tuple[int, int]:
    """Queries per program and heads per query, padded to powers of two that fill a tensor core's sixteen rows."""
    queries = min(wanted, next_power_of_two(group))
    padded = next_power_of_two(per_group)
    return queries, max(padded, 16 // queries)


def takes_small_tiles(tensor: Tensor) -> bool:
    """Whether to launch with small tiles: in the interpreter, and in float32, whose tiles would overflow shared memory."""
    return tensor.device.type == "cpu" or tensor.dtype == torch.float32
