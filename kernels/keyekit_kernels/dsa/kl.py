"""Triton kernel of the indexer's divergence over selected keys, and what makes a divergence differentiable.

One program takes one query. It passes over the selected keys twice: once for the log-sum-exp of the indexer's scores, once
for everything else, whose gradients are known as soon as the divergence is (dsa-kernels sheet 2.2). Between the passes it
holds the gradients of one query; nothing of the size of the selection is written.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.launch import Launch, next_power_of_two

__all__ = ["IndexerKL", "check_divergence_inputs", "sparse_indexer_kl", "sparse_kl"]

EMPTY = tl.constexpr(-1e30)  # finite, so that a row without keys stays free of NaN
TINY = tl.constexpr(1e-30)  # a literal below float32's normal range would make the compiler take float64
# Differences of probabilities are as small as 1e-6: a power of two keeps them normal numbers in float16, and changes nothing
# in the wider dtypes.
RAISE = tl.constexpr(1024.0)

_LAUNCH = Launch(block=64, warps=4, stages=2)
_LAUNCH_SMALL = Launch(block=16, warps=4, stages=1)
"""For the interpreter, where borders are tested and not speed, and for float32, whose tiles fill shared memory."""


@triton.jit
def _score_tile(query, key, gate):
    """Products ``[heads, keys]`` before the ReLU, and the scores ``[keys]`` of a tile of one query."""
    products = tl.dot(query, tl.trans(key), input_precision="ieee")
    active = tl.maximum(products, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return products, active, tl.sum(active * gate[:, None], 0)


@triton.jit
def divergence_tile(target, scores, log_normaliser, allowed) -> tuple[tl.tensor, tl.tensor]:
    """Terms of the divergence, and its derivatives by the scores, both zero where ``allowed`` is not."""
    log_student = scores - log_normaliser
    terms = target * (tl.log(tl.maximum(target, TINY)) - log_student)
    return tl.where(allowed, terms, 0.0), tl.where(allowed, tl.exp(log_student) - target, 0.0)


@triton.jit
def sparse_kl_kernel(
    index_query,  # [T, INDEX_HEADS, INDEX_WIDTH]
    index_key,  # [S, INDEX_WIDTH]
    gate,  # [T, INDEX_HEADS]
    query,  # [T, H, WIDTH]
    key,  # [S, G, WIDTH]
    lse,  # [T, H] float32
    indices,  # [T, N] int32, ascending, -1 tail
    counts,  # [T] int32
    row_weight,  # [T] float32
    loss,  # [T] float32
    grad_index_query,  # [T, INDEX_HEADS, INDEX_WIDTH]
    grad_index_key,  # [S, INDEX_WIDTH] float32, zero before
    grad_gate,  # [T, INDEX_HEADS]
    num_selected,
    num_groups,
    scale,
    INDEX_HEADS: tl.constexpr,
    INDEX_ROWS: tl.constexpr,
    INDEX_WIDTH: tl.constexpr,
    INDEX_SCALE: tl.constexpr,
    PER_GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GRADIENTS: tl.constexpr,
) -> None:
    """One program per query: the heads of the indexer, and of one group at a time, are the rows of a tile."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    weight = tl.load(row_weight + token)
    count = tl.where(weight == 0.0, 0, tl.load(counts + token))
    index_row, index_channel = tl.arange(0, INDEX_ROWS), tl.arange(0, INDEX_WIDTH)
    index_real = index_row < INDEX_HEADS
    index_head = token * INDEX_HEADS + index_row
    index_heads = index_head[:, None] * INDEX_WIDTH + index_channel
    q_index = tl.load(index_query + index_heads, mask=index_real[:, None], other=0.0)
    gates = tl.load(gate + index_head, mask=index_real, other=0.0).to(tl.float32) * INDEX_SCALE

    # Pass 1: every lane keeps a running maximum and sum of its own; they meet once, at the end.
    peak, total = tl.full([BLOCK], EMPTY, tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, count, BLOCK):
        chosen = start + column < count
        index = tl.load(indices + token * num_selected + start + column, mask=chosen, other=0).to(tl.int64)
        k_index = tl.load(index_key + (index * INDEX_WIDTH)[:, None] + index_channel, mask=chosen[:, None], other=0.0)
        _, _, scores = _score_tile(q_index, k_index, gates)
        scores = tl.where(chosen, scores, EMPTY)
        higher = tl.maximum(peak, scores)
        total = total * tl.exp(peak - higher) + tl.where(chosen, tl.exp(scores - higher), 0.0)
        peak = higher
    top = tl.max(peak, 0)
    log_normaliser = top + tl.log(tl.maximum(tl.sum(total * tl.exp(peak - top), 0), TINY))

    # Pass 2: target, divergence and gradients.
    row, channel = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    real = row < PER_GROUP
    gated = (q_index.to(tl.float32) * gates[:, None]).to(q_index.dtype)
    divergence = tl.zeros([BLOCK], tl.float32)
    by_query, by_gate = tl.zeros([INDEX_ROWS, INDEX_WIDTH], tl.float32), tl.zeros([INDEX_ROWS], tl.float32)
    for start in range(0, count, BLOCK):
        chosen = start + column < count
        index = tl.load(indices + token * num_selected + start + column, mask=chosen, other=0).to(tl.int64)
        target = tl.zeros([BLOCK], tl.float32)
        for group in range(num_groups):
            head = (token * num_groups + group) * PER_GROUP + row
            q = tl.load(query + head[:, None] * WIDTH + channel, mask=real[:, None], other=0.0)
            k = tl.load(
                key + ((index * num_groups + group) * WIDTH)[:, None] + channel, mask=chosen[:, None], other=0.0
            )
            row_lse = tl.load(lse + head, mask=real, other=0.0)
            logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            target += tl.sum(tl.where(real[:, None], tl.exp(logits - row_lse[:, None]), 0.0), 0)
        target = target / (num_groups * PER_GROUP)
        place = (index * INDEX_WIDTH)[:, None] + index_channel
        k_index = tl.load(index_key + place, mask=chosen[:, None], other=0.0)
        products, active, scores = _score_tile(q_index, k_index, gates)
        terms, difference = divergence_tile(target, scores, log_normaliser, chosen)
        divergence += terms
        if GRADIENTS:
            by_gate += tl.sum(active * difference[None, :], 1)
            slope = tl.where(products > 0.0, difference[None, :] * RAISE, 0.0).to(k_index.dtype)
            by_query += tl.dot(slope, k_index, input_precision="ieee")
            by_key = tl.dot(tl.trans(slope), gated, input_precision="ieee") * (weight / RAISE)
            tl.atomic_add(grad_index_key + place, by_key, mask=chosen[:, None], sem="relaxed")
    tl.store(loss + token, tl.sum(divergence, 0) * weight)
    if GRADIENTS:
        by_query = by_query * (gates[:, None] * (weight / RAISE))
        by_gate = by_gate * (INDEX_SCALE * weight)
        tl.store(
            grad_index_query + index_heads, by_query.to(grad_index_query.dtype.element_ty), mask=index_real[:, None]
        )
        tl.store(grad_gate + index_head, by_gate.to(grad_gate.dtype.element_ty), mask=index_real)


def sparse_kl(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    indices: Tensor,
    counts: Tensor,
    scale: float,
    need_gradients: bool = True,
    row_weight: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Divergence of the indexer from the attention over selected keys, with the gradients of its sum.

    Args:
        index_query: ``[T, I, indexer_dim]`` contiguous, like all tensors here.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries.
        key: ``[S, G, K]`` attention keys.
        lse: ``[T, H]`` natural log-sum-exp of the attention over the same selection.
        indices: ``[T, N]`` int32 rows of the keys, ascending, -1 tail.
        counts: ``[T]`` int32 keys selected by each query.
        scale: Factor on the attention's dot products.
        need_gradients: Whether to compute gradients.
        row_weight: ``[T]`` factors on the divergences; a row of weight zero costs nothing. All one if left out.

    Returns:
        ``[T]`` float32 weighted divergences in nats, and the gradients of their sum by index query, index key (float32) and
        gate, or None. The gradient of the index key is added up by atomic operations, whose order differs from run to run.
    """
    num_tokens, index_heads, index_width = index_query.shape
    num_heads, width = query.shape[1:]
    groups = key.shape[1]
    loss = index_query.new_empty(num_tokens, dtype=torch.float32)
    gradients = _gradient_buffers(index_query, index_key, gate) if need_gradients else (loss, loss, loss)
    launch = _LAUNCH_SMALL if is_small(index_query, width, index_width) else _LAUNCH
    if num_tokens:
        sparse_kl_kernel[(num_tokens,)](
            index_query,
            index_key,
            gate,
            query,
            key,
            lse,
            indices,
            counts,
            row_weights(row_weight, index_query),
            loss,
            *gradients,
            indices.shape[1],
            groups,
            scale,
            INDEX_HEADS=index_heads,
            INDEX_ROWS=max(next_power_of_two(index_heads), 16),
            INDEX_WIDTH=index_width,
            INDEX_SCALE=index_width**-0.5,  # Keye-VL-2.0 sheet 4.1 item 6
            PER_GROUP=num_heads // groups,
            ROWS=max(next_power_of_two(num_heads // groups), 16),
            WIDTH=width,
            BLOCK=launch.block,
            GRADIENTS=need_gradients,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )
    return loss, gradients if need_gradients else None


def sparse_indexer_kl(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    indices: Tensor,
    scale: float,
    counts: Tensor | None = None,
    row_weight: Tensor | None = None,
) -> Tensor:
    """Divergence of the indexer from the attention over selected keys, differentiable in the indexer's three tensors.

    See :class:`IndexerKL` for what a backward pass costs.

    Args:
        index_query: ``[T, I, indexer_dim]`` contiguous, like all tensors here.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries, a constant.
        key: ``[S, G, K]`` attention keys, a constant.
        lse: ``[T, H]`` float32 natural log-sum-exp of the attention over the same selection, a constant.
        indices: ``[T, N]`` int32 rows of the keys, ascending, -1 tail.
        scale: Factor on the attention's dot products.
        counts: ``[T]`` int32 keys selected by each query; counted if left out.
        row_weight: ``[T]`` float32 factors on the divergences, zero for rows that do not count.

    Returns:
        ``[T]`` float32 weighted divergences in nats; zero for a query without keys.

    Raises:
        ValueError: If a shape, a width or a dtype is none that the kernel takes.
    """
    check_divergence_inputs(index_query, index_key, gate, query, key, lse, row_weight)
    if indices.dtype != torch.int32 or indices.dim() != 2 or indices.shape[0] != query.shape[0]:
        raise ValueError(
            f"indices is {list(indices.shape)} {indices.dtype}: give int32 rows of keys for {query.shape[0]} queries"
        )
    if counts is None:
        counts = (indices >= 0).sum(dim=1, dtype=torch.int32)
    constants = (query, key, lse, indices.contiguous(), counts)
    return IndexerKL.apply(
        _launch_sparse, (scale,), torch.is_grad_enabled(), index_query, index_key, gate, row_weight, *constants
    )


class IndexerKL(torch.autograd.Function):
    """Divergences ``[T]`` whose gradients are computed beside them.

    The forward pass takes the gradients of the *sum*. Where the backward pass receives one factor for all rows, as it does
    after ``sum()`` and ``mean()``, it multiplies by that. Otherwise the rows' shares of the key's gradient cannot be told
    apart any more: the kernel runs once more, with the factors as row weights. Both are exact, and which it is the device
    finds out for itself: for one factor the second run gets weights of zero, at which its programs end at once. So nothing
    waits for the device; after ``sum()`` the strides tell, and there is no second launch at all. To weigh rows or leave
    them out without a second run, pass ``row_weight`` and take the sum.
    """

    @staticmethod
    def forward(
        ctx,
        launch: Callable,
        settings: tuple,
        grad_enabled: bool,
        index_query: Tensor,
        index_key: Tensor,
        gate: Tensor,
        row_weight: Tensor | None,
        *constants: Tensor,
    ) -> Tensor:
        """Divergences, and their gradients if somebody may ask for them."""
        ctx.launch, ctx.settings = launch, settings
        indexer = (index_query, index_key, gate)
        loss, gradients = launch(indexer, constants, settings, row_weight, grad_enabled and any(ctx.needs_input_grad))
        if gradients is not None:
            ctx.save_for_backward(*indexer, row_weight, *gradients, *constants)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients of the forward pass, and compute them anew for rows that weigh differently."""
        saved = ctx.saved_tensors  # unpacked once, as checkpointing demands
        indexer, row_weight, gradients, constants = saved[:3], saved[3], saved[4:7], saved[7:]
        factor = grad_loss[:1].sum()  # that of the first row, or zero where there is no row
        if grad_loss.numel() <= 1 or grad_loss.stride(0) == 0:
            summed = [gradient.float() * factor for gradient in gradients]
        else:
            uniform = (grad_loss == factor).all()
            weight = grad_loss if row_weight is None else grad_loss * row_weight
            again = ctx.launch(indexer, constants, ctx.settings, weight.masked_fill(uniform, 0.0), True)[1]
            factor = factor.masked_fill(~uniform, 0.0)
            summed = [gradient.float() * factor + other for gradient, other in zip(gradients, again, strict=True)]
        wanted = [gradient.to(tensor.dtype) for gradient, tensor in zip(summed, indexer, strict=True)]
        return None, None, None, *wanted, None, *(None for _ in constants)


def check_divergence_inputs(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor | None,
    row_weight: Tensor | None,
) -> None:
    """Refuse what the kernels of the divergence cannot take.

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        lse: ``[T, H]`` or None.
        row_weight: ``[T]`` or None.

    Raises:
        ValueError: Naming the argument, what was given and what is allowed.
    """
    (num_tokens, index_heads, index_width), (_, num_heads, width) = index_query.shape, query.shape
    num_keys, groups = key.shape[:2]
    if num_heads % groups:
        raise ValueError(f"query has {num_heads} heads, which do not divide into the {groups} groups of key")
    shapes = {
        "index_key": (index_key, (num_keys, index_width)),
        "gate": (gate, (num_tokens, index_heads)),
        "query": (query, (num_tokens, num_heads, width)),
        "key": (key, (num_keys, groups, width)),
        "lse": (lse, (num_tokens, num_heads)),
        "row_weight": (row_weight, (num_tokens,)),
    }
    for name, (tensor, shape) in shapes.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, but goes with the other tensors as {list(shape)}")
    for name, size in (("index_query", index_width), ("query", width)):
        if size not in (16, 32, 64, 128):
            raise ValueError(f"{name} has heads of width {size}: the kernels take 16, 32, 64 and 128")
    for name, tensor, partner in (("index_key", index_key, index_query), ("key", key, query)):
        if tensor.dtype != partner.dtype or tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name} is {tensor.dtype} and its query {partner.dtype}: give both in one of float32, float16, bfloat16"
            )
    named = {"index_query": index_query} | {name: tensor for name, (tensor, _) in shapes.items()}
    for name, tensor in named.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}: make it contiguous")


def is_small(tensor: Tensor, width: int, index_width: int) -> bool:
    """Whether to launch with small tiles: in the interpreter, in float32, or for heads narrower than a tensor core's tile."""
    return tensor.device.type == "cpu" or tensor.dtype == torch.float32 or min(width, index_width) < 64


def row_weights(row_weight: Tensor | None, like: Tensor) -> Tensor:
    """The row weights in float32, one where none are given."""
    if row_weight is None:
        return like.new_ones(like.shape[0], dtype=torch.float32)
    return row_weight.float()


def _gradient_buffers(index_query: Tensor, index_key: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the gradients go; float16 is too narrow for them before they meet a loss scale."""
    row_dtypes = (torch.float32 if tensor.dtype == torch.float16 else tensor.dtype for tensor in (index_query, gate))
    by_query, by_gate = (
        torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip((index_query, gate), row_dtypes, strict=True)
    )
    return by_query, torch.zeros_like(index_key, dtype=torch.float32), by_gate


def _launch_sparse(indexer, constants, settings, row_weight, need_gradients):
    return sparse_kl(*indexer, *constants, *settings, need_gradients=need_gradients, row_weight=row_weight)
