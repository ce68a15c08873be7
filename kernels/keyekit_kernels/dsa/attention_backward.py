"""Triton kernels of grouped-query attention over selected keys: gradients."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.attention_forward import rows_of, takes_small_tiles
from keyekit_kernels.dsa.attention_tiles import EMPTY, LOG2E, gather_keys, is_selected, query_rows, union_rows
from keyekit_kernels.dsa.launch import Launch, launch_for, next_power_of_two
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
def union_backward_kernel(
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
    grad_key,  # [S or rows of the chunk, G, WIDTH] float32
    grad_value,  # likewise
    num_groups,
    scale,
    block_offset,  # first block of a chunk
    PER_GROUP: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SIDE: tl.constexpr,
) -> None:
    """One program per ``QUERIES`` of a block and group.

    ``SIDE`` says which gradients are made: of the ``query``; of keys and values added up by ``atomic`` operations; or of keys
    and values as ``partial`` rows in the order of the union, for a sum in fixed order.
    """
    block, part = block_offset + tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    group, column = tl.program_id(1), tl.arange(0, BLOCK)
    bit, real, head, heads = union_rows(first, size, block, part, group, num_groups, PER_GROUP, PADDED, QUERIES, WIDTH)
    q = tl.load(query + heads, mask=real[:, None], other=0.0)
    do = tl.load(grad + heads, mask=real[:, None], other=0.0)
    row_lse, row_delta = tl.load(lse + head, mask=real, other=0.0), tl.load(delta + head, mask=real, other=0.0)
    begin = tl.load(starts + block)
    count = (tl.load(starts + block + 1) - begin).to(tl.int32)
    origin = begin - tl.load(starts + block_offset)  # where the block's rows begin in a chunk of partial rows
    dq = tl.zeros([QUERIES * PADDED, WIDTH], tl.float32)
    for start in range(0, count, BLOCK):
        inside = start + column < count
        index = tl.load(keys + begin + start + column, mask=inside, other=0)
        mask = tl.load(masks + begin + start + column, mask=inside, other=0)
        place, k, v = gather_keys(key, value, index, inside, group, num_groups, WIDTH)
        allowed = is_selected(mask, bit) & real[:, None]
        weights, slope = _weights_and_slope(q, k, v, do, row_lse, row_delta, allowed, scale)
        if SIDE == "query":
            dq += tl.dot(slope.to(k.dtype), k, input_precision="ieee")
        else:
            dk = tl.dot(tl.trans(slope.to(q.dtype)), q, input_precision="ieee")
            dv = tl.dot(tl.trans(weights.to(do.dtype)), do, input_precision="ieee")
            if SIDE == "atomic":
                tl.atomic_add(grad_key + place, dk, mask=inside[:, None], sem="relaxed")
                tl.atomic_add(grad_value + place, dv, mask=inside[:, None], sem="relaxed")
            else:
                line = (((origin + start + column) * num_groups + group) * WIDTH)[:, None] + tl.arange(0, WIDTH)
                tl.store(grad_key + line, dk, mask=inside[:, None])
                tl.store(grad_value + line, dv, mask=inside[:, None])
    if SIDE == "query":
        tl.store(grad_query + heads, dq.to(grad_query.dtype.element_ty), mask=real[:, None])


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
    grad_query = torch.empty_like(query)
    shared = _Shared(query, key, value, grad, lse, _delta(grad, output), union, grad_query, scale)
    nothing = query.new_empty(0, dtype=torch.float32)
    if union.num_blocks:
        shared.run("query", "union backward query", nothing, nothing)
    if deterministic:
        grad_key, grad_value = _ordered(shared)
    else:
        grad_key, grad_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
        if union.num_blocks:
            shared.run("atomic", "union backward key", grad_key, grad_value)
    return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)


class _Shared:
    """What the launches of one backward pass have in common."""

    def __init__(self, query, key, value, grad, lse, delta, union: Union, grad_query, scale: float) -> None:
        self.inputs = (query, key, value, grad, lse, delta)
        self.union, self.grad_query, self.scale = union, grad_query, scale
        self.groups, self.per_group = key.shape[1], query.shape[1] // key.shape[1]

    def run(
        self,
        side: str,
        kernel: str,
        grad_key: Tensor,
        grad_value: Tensor,
        blocks: tuple[int, int] | None = None,
        together: bool = False,
    ) -> None:
        """Launch for a range of blocks; ``together`` keeps a block's queries in one program."""
        query, union = self.inputs[0], self.union
        launch = launch_for(kernel, query.shape[2], takes_small_tiles(query))
        if together:
            launch = Launch(launch.block, launch.warps, launch.stages, next_power_of_two(union.group))
        queries, padded = rows_of(launch.queries, union.group, self.per_group)
        parts = -(-union.group // queries)
        begin, end = blocks or (0, union.num_blocks)
        union_backward_kernel[((end - begin) * parts, self.groups)](
            *self.inputs,
            union.keys,
            union.masks,
            union.starts,
            union.first,
            union.size,
            self.grad_query,
            grad_key,
            grad_value,
            self.groups,
            self.scale,
            begin,
            PER_GROUP=self.per_group,
            PADDED=padded,
            QUERIES=queries,
            PARTS=parts,
            WIDTH=query.shape[2],
            BLOCK=launch.block,
            SIDE=side,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )


def _ordered(shared: _Shared) -> tuple[Tensor, Tensor]:
    """Gradients of keys and values from partial rows, added block after block."""
    _, key, value = shared.inputs[:3]
    grad_key, grad_value = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (key, value))
    starts = shared.union.starts.tolist()
    for begin, end in cut_blocks(starts, row_bytes=8 * shared.groups * key.shape[2]):
        rows = starts[end] - starts[begin]
        part_key, part_value = (key.new_empty(rows, *key.shape[1:], dtype=torch.float32) for _ in range(2))
        shared.run("partial", "union backward key", part_key, part_value, (begin, end), together=True)
        keys = shared.union.keys[starts[begin] : starts[end]].long()
        add_in_order(grad_key, keys, part_key)
        add_in_order(grad_value, keys, part_value)
    return grad_key, grad_value


def _delta(grad: Tensor, output: Tensor) -> Tensor:
    return (grad.float() * output.float()).sum(dim=-1)
