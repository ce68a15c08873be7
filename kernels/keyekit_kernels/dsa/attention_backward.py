"""Triton kernels of grouped-query attention over selected keys: gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.attention_forward import needs_wide_offsets, rows_of, takes_small_tiles
from keyekit_kernels.dsa.attention_tiles import (
    EMPTY,
    LOG2E,
    gather_keys,
    is_selected,
    query_rows,
    union_keys,
    union_rows,
)
from keyekit_kernels.dsa.launch import launch_for, next_power_of_two
from keyekit_kernels.dsa.ordered_sum import add_in_order, cut_blocks
from keyekit_kernels.dsa.union import Union

__all__ = ["query_backward", "union_backward"]


@triton.jit
def _weights_and_slope(query, key, value, grad, lse, delta, allowed, scale):
    """Attention weights of a tile, and the derivative of the loss by its logits before scaling.

    dP = dO V^T and dS = P (dP - delta), where delta is the sum of dO O over the channels (dsa-kernels sheet 2.2).
    """
    logits = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * LOG2E)
    weights = tl.exp2(tl.where(allowed, logits - lse[:, None] * LOG2E, EMPTY))
    slope = tl.dot(grad, tl.trans(value), input_precision="ieee")
    return weights, weights * (slope - delta[:, None]) * scale


@triton.jit
def query_backward_kernel(
    query,
    key,
    value,
    grad,  # [T, H, WIDTH] gradient of the output
    lse,  # [T, H]
    delta,  # [T, H]
    indices,
    counts,
    grad_query,  # [T, H, WIDTH]
    grad_key,  # [S, G, WIDTH] float32
    grad_value,  # [S, G, WIDTH] float32
    num_selected,
    num_groups,
    scale,
    PER_GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per query and group; keys and values collect their gradients by atomic additions."""
    token, group, column = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, BLOCK)
    real, head, heads = query_rows(token, group, num_groups, PER_GROUP, ROWS, WIDTH)
    q = tl.load(query + heads, mask=real[:, None], other=0.0)
    do = tl.load(grad + heads, mask=real[:, None], other=0.0)
    row_lse, row_delta = tl.load(lse + head, mask=real, other=0.0), tl.load(delta + head, mask=real, other=0.0)
    dq = tl.zeros([ROWS, WIDTH], tl.float32)
    count = tl.load(counts + token)
    for start in range(0, count, BLOCK):
        chosen = start + column < count
        index = tl.load(indices + token * num_selected + start + column, mask=chosen, other=0)
        place, k, v = gather_keys(key, value, index, chosen, group, num_groups, WIDTH)
        allowed = chosen[None, :] & real[:, None]
        weights, slope = _weights_and_slope(q, k, v, do, row_lse, row_delta, allowed, scale)
        dq += tl.dot(slope.to(k.dtype), k, input_precision="ieee")
        dk = tl.dot(tl.trans(slope.to(q.dtype)), q, input_precision="ieee")
        dv = tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision="ieee")
        tl.atomic_add(grad_key + place, dk, mask=chosen[:, None], sem="relaxed")
        tl.atomic_add(grad_value + place, dv, mask=chosen[:, None], sem="relaxed")
    tl.store(grad_query + heads, dq.to(grad_query.dtype.element_ty), mask=real[:, None])


@triton.jit
def union_query_kernel(
    query,
    key,
    value,
    grad,  # [T, H, WIDTH] gradient of the output
    lse,  # [T, H]
    delta,  # [T, H]
    keys,  # [U] int32
    masks,  # [U] int32
    starts,  # [blocks + 1] int64
    first,  # [blocks] int32
    size,  # [blocks] int32
    grad_query,  # [T, H, WIDTH]
    num_groups,
    scale,
    PER_GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
) -> None:
    """Gradients of queries: one program per ``QUERIES`` of a block and group walks over the block's keys."""
    block, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    group = tl.program_id(1)
    bit, real, head, heads = union_rows(first, size, block, part, group, num_groups, PER_GROUP, PADDED, QUERIES, WIDTH)
    q = tl.load(query + heads, mask=real[:, None], other=0.0)
    do = tl.load(grad + heads, mask=real[:, None], other=0.0)
    row_lse, row_delta = tl.load(lse + head, mask=real, other=0.0), tl.load(delta + head, mask=real, other=0.0)
    row_lse *= LOG2E
    begin = tl.load(starts + block)
    count = (tl.load(starts + block + 1) - begin).to(tl.int32)
    keys += begin
    masks += begin
    dq = tl.zeros([QUERIES * PADDED, WIDTH], tl.float32)
    for start in range(0, count, BLOCK):
        bits, k, v = union_keys(key, value, keys, masks, start, count, group, num_groups, WIDTH, BLOCK, WIDE)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee")
        slope = tl.dot(do, tl.trans(v), input_precision="ieee")
        logits = logits * (scale * LOG2E) - row_lse[:, None]
        weights = tl.exp2(tl.where(is_selected(bits, bit), logits, EMPTY))
        dq = tl.dot((weights * (slope - row_delta[:, None])).to(k.dtype), k, dq, input_precision="ieee")
    tl.store(grad_query + heads, (dq * scale).to(grad_query.dtype.element_ty), mask=real[:, None])


@triton.jit
def union_key_kernel(
    query,
    key,
    value,
    grad,  # [T, H, WIDTH] gradient of the output
    lse,  # [T, H]
    delta,  # [T, H]
    keys,  # [U] int32
    masks,  # [U] int32
    starts,  # [blocks + 1] int64
    first,  # [blocks] int32
    size,  # [blocks] int32
    tile_block,  # [tiles] int32, the number of blocks where there is no such tile
    tile_start,  # [tiles] int32, first key of the tile in its block
    grad_key,  # [S or rows of the chunk, G, WIDTH] float32
    grad_value,  # likewise
    num_groups,
    num_blocks,
    scale,
    first_row,  # where the rows of a chunk begin in the union
    PER_GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ATOMIC: tl.constexpr,
) -> None:
    """Gradients of keys and values: one program per tile of a block's keys and group walks over the block's queries.

    The tile stays where it is while queries stream past, so each key of a block is added to memory once: by ``ATOMIC``
    operations, or as partial rows in the order of the union, for a sum in fixed order.
    """
    block = tl.load(tile_block + tl.program_id(0))
    if block < num_blocks:
        group = tl.program_id(1)
        column, channel, row = tl.arange(0, BLOCK), tl.arange(0, WIDTH), tl.arange(0, QUERIES * PADDED)
        begin = tl.load(starts + block)
        start, count = tl.load(tile_start + tl.program_id(0)), (tl.load(starts + block + 1) - begin).to(tl.int32)
        inside = start + column < count
        slot = begin + tl.minimum(start + column, count - 1)
        bits = tl.where(inside, tl.load(masks + slot), 0)
        place = (tl.load(keys + slot).to(tl.int64) * num_groups + group)[:, None] * WIDTH + channel
        k, v = tl.load(key + place), tl.load(value + place)
        dk, dv = tl.zeros([BLOCK, WIDTH], tl.float32), tl.zeros([BLOCK, WIDTH], tl.float32)
        tokens = tl.load(size + block)
        # Wide numbers are scalars: offsets inside the block fit into 32 bits.
        head = tl.load(first + block).to(tl.int64) * (num_groups * PER_GROUP) + group * PER_GROUP
        member = tl.minimum(row % PADDED, PER_GROUP - 1)
        for part in range(PARTS):
            bit = part * QUERIES + row // PADDED
            line = tl.minimum(bit, tokens - 1) * (num_groups * PER_GROUP) + member
            at = line[:, None] * WIDTH + channel
            q, do = tl.load(query + head * WIDTH + at), tl.load(grad + head * WIDTH + at)
            row_lse, row_delta = tl.load(lse + head + line) * LOG2E, tl.load(delta + head + line)
            logits = tl.dot(k, tl.trans(q), input_precision="ieee")
            slope = tl.dot(v, tl.trans(do), input_precision="ieee")
            allowed = (bits[:, None] << (31 - bit)[None, :]) < 0
            if PADDED != PER_GROUP:
                allowed = allowed & (row % PADDED < PER_GROUP)[None, :]
            weights = tl.exp2(tl.where(allowed, logits * (scale * LOG2E) - row_lse[None, :], EMPTY))
            dv = tl.dot(weights.to(do.dtype), do, dv, input_precision="ieee")
            dk = tl.dot((weights * (slope - row_delta[None, :])).to(q.dtype), q, dk, input_precision="ieee")
        if ATOMIC:
            tl.atomic_add(grad_key + place, dk * scale, mask=inside[:, None], sem="relaxed")
            tl.atomic_add(grad_value + place, dv, mask=inside[:, None], sem="relaxed")
        else:
            place = ((begin - first_row + start + column) * num_groups + group)[:, None] * WIDTH + channel
            tl.store(grad_key + place, dk * scale, mask=inside[:, None])
            tl.store(grad_value + place, dv, mask=inside[:, None])


@triton.jit
def delta_kernel(grad, output, delta, num_rows, WIDTH: tl.constexpr, ROWS: tl.constexpr) -> None:
    """Sum over the channels of gradient times output, ``ROWS`` (query, head) pairs a program."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    place, there = row[:, None] * WIDTH + tl.arange(0, WIDTH), row < num_rows
    do = tl.load(grad + place, mask=there[:, None], other=0.0).to(tl.float32)
    o = tl.load(output + place, mask=there[:, None], other=0.0).to(tl.float32)
    tl.store(delta + row, tl.sum(do * o, 1), mask=there)


def query_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    indices: Tensor,
    counts: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`~keyekit_kernels.dsa.attention_forward.query_forward`.

    Args:
        grad: ``[T, H, K]`` gradient of the output.
        query: ``[T, H, K]`` contiguous, like all tensors here.
        key: ``[S, G, K]``.
        value: ``[S, G, K]``.
        output: ``[T, H, K]`` of the forward pass.
        lse: ``[T, H]`` of the forward pass.
        indices: ``[T, N]`` int32.
        counts: ``[T]`` int32.
        scale: Factor on the dot products.

    Returns:
        Gradients of query, key and value in their dtypes. Those of key and value are added up in float32 by atomic
        operations, whose order differs from run to run.
    """
    num_tokens, num_heads, width = query.shape
    groups = key.shape[1]
    grad_query = torch.empty_like(query)
    grad_key, grad_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
    launch = launch_for("query backward", width, takes_small_tiles(query))
    if num_tokens:
        query_backward_kernel[(num_tokens, groups)](
            query,
            key,
            value,
            grad,
            lse,
            _delta(grad, output),
            indices,
            counts,
            grad_query,
            grad_key,
            grad_value,
            indices.shape[1],
            groups,
            scale,
            PER_GROUP=num_heads // groups,
            ROWS=max(next_power_of_two(num_heads // groups), 16),
            WIDTH=width,
            BLOCK=launch.block,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


def union_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    union: Union,
    scale: float,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`~keyekit_kernels.dsa.attention_forward.union_forward`.

    Args:
        grad: ``[T, H, K]`` gradient of the output.
        query: ``[T, H, K]`` contiguous, like all tensors here.
        key: ``[S, G, K]``.
        value: ``[S, G, K]``.
        output: ``[T, H, K]`` of the forward pass.
        lse: ``[T, H]`` of the forward pass.
        union: Selections of blocks of adjacent queries.
        scale: Factor on the dot products.
        deterministic: Whether the gradients of key and value are added up in a fixed order, for bit-equal repetitions; costs
            memory for a chunk of partial rows and about half as much time again.

    Returns:
        Gradients of query, key and value in their dtypes.
    """
    shared = _Shared(query, key, value, grad, lse, _delta(grad, output), scale)
    grad_query = torch.empty_like(query)
    shared.queries(union, grad_query)
    wide = union.regrouped(_KEY_GROUP)
    if deterministic:
        grad_key, grad_value = _ordered(shared, wide)
    else:
        grad_key, grad_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
        shared.keys(wide, grad_key, grad_value)
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


_KEY_GROUP = 32
"""Queries whose gradients of a key are added before they go to memory."""


class _Shared:
    """What the launches of one backward pass have in common."""

    def __init__(self, query, key, value, grad, lse, delta, scale: float) -> None:
        self.inputs = (query, key, value, grad, lse, delta)
        self.scale = scale
        self.groups, self.per_group, self.width = key.shape[1], query.shape[1] // key.shape[1], query.shape[2]

    def queries(self, union: Union, grad_query: Tensor) -> None:
        """Gradients of all queries."""
        launch = launch_for("union backward query", self.width, takes_small_tiles(grad_query))
        queries, padded = rows_of(launch.queries, union.group, self.per_group)
        parts = -(-union.group // queries)
        if union.num_blocks:
            union_query_kernel[(union.num_blocks * parts, self.groups)](
                *self.inputs,
                union.keys,
                union.masks,
                union.starts,
                union.first,
                union.size,
                grad_query,
                self.groups,
                self.scale,
                PER_GROUP=self.per_group,
                PADDED=padded,
                QUERIES=queries,
                PARTS=parts,
                WIDTH=self.width,
                BLOCK=launch.block,
                WIDE=needs_wide_offsets(self.inputs[1]),
                num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
                num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
            )

    def keys(
        self, union: Union, grad_key: Tensor, grad_value: Tensor, blocks: tuple[int, int, int] | None = None
    ) -> None:
        """Gradients of keys and values, added to what is there.

        With a range of ``blocks``, and the row of the union where it begins, they are partial rows instead.
        """
        launch = launch_for("union backward key", self.width, takes_small_tiles(self.inputs[0]))
        queries, padded = rows_of(launch.queries, union.group, self.per_group)
        begin, end, first_row = blocks or (0, union.num_blocks, 0)
        if begin == end:
            return
        tile_block, tile_start = union.tiles(launch.block, begin, end)
        union_key_kernel[(tile_block.shape[0], self.groups)](
            *self.inputs,
            union.keys,
            union.masks,
            union.starts,
            union.first,
            union.size,
            tile_block,
            tile_start,
            grad_key,
            grad_value,
            self.groups,
            end,
            self.scale,
            first_row,
            PER_GROUP=self.per_group,
            PADDED=padded,
            QUERIES=queries,
            PARTS=-(-union.group // queries),
            WIDTH=self.width,
            BLOCK=launch.block,
            ATOMIC=blocks is None,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )


def _ordered(shared: _Shared, union: Union) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values from partial rows, added block after block."""
    _, key, value = shared.inputs[:3]
    grad_key, grad_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
    starts = union.starts.tolist()
    for begin, end in cut_blocks(starts, 8 * shared.groups * key.shape[2]):
        rows = slice(starts[begin], starts[end])
        part_key, part_value = (
            key.new_empty(rows.stop - rows.start, *key.shape[1:], dtype=torch.float32) for _ in range(2)
        )
        shared.keys(union, part_key, part_value, (begin, end, rows.start))
        keys = union.keys[rows].long()
        add_in_order(grad_key, keys, part_key)
        add_in_order(grad_value, keys, part_value)
    return grad_key, grad_value


def _delta(grad: Tensor, output: Tensor) -> Tensor:
    delta = grad.new_empty(grad.shape[:2], dtype=torch.float32)
    if delta.numel():
        rows = 32
        delta_kernel[(-(-delta.numel() // rows),)](
            grad,
            output,
            delta,
            delta.numel(),
            WIDTH=grad.shape[2],
            ROWS=rows,
            num_warps=4,  # pyright: ignore[reportCallIssue]
        )
    return delta
