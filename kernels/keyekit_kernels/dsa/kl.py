"""Triton kernel of the indexer's divergence over selected keys.

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

from keyekit_kernels.dsa.attention_forward import takes_small_tiles
from keyekit_kernels.dsa.attention_tiles import EMPTY
from keyekit_kernels.dsa.checks import check_indices
from keyekit_kernels.dsa.divergence import IndexerKL, check_divergence_inputs
from keyekit_kernels.dsa.launch import Launch, next_power_of_two
from keyekit_kernels.dsa.ordered_sum import add_in_order, cut_blocks

__all__ = ["launch_sparse", "sparse_indexer_kl", "sparse_kl"]

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
    grad_index_key,  # [S, INDEX_WIDTH] float32, zero before; where ORDERED, a row per query of the launch and selected key
    grad_gate,  # [T, INDEX_HEADS]
    first_token,
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
    ORDERED: tl.constexpr,
) -> None:
    """One program per query: the heads of the indexer, and of one group at a time, are the rows of a tile."""
    token = tl.program_id(0).to(tl.int64) + first_token
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
            if ORDERED:
                line = tl.program_id(0).to(tl.int64) * num_selected + start + column
                tl.store(grad_index_key + (line * INDEX_WIDTH)[:, None] + index_channel, by_key, mask=chosen[:, None])
            else:
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
    deterministic: bool = False,
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
        deterministic: Whether the gradient of the index key is added up in a fixed order, from partial rows
            (:mod:`keyekit_kernels.dsa.ordered_sum`). Otherwise atomic operations add it up, whose order differs from run to
            run; all other results are the same bits in every run anyhow.

    Returns:
        ``[T]`` float32 weighted divergences in nats, and the gradients of their sum by index query, index key (float32) and
        gate, or None.
    """
    num_tokens, index_heads, index_width = index_query.shape
    num_heads, width = query.shape[1:]
    groups = key.shape[1]
    loss = index_query.new_empty(num_tokens, dtype=torch.float32)
    gradients = _gradient_buffers(index_query, index_key, gate) if need_gradients else (loss, loss, loss)
    launch = _LAUNCH_SMALL if is_small(index_query, width, index_width) else _LAUNCH
    weights = row_weights(row_weight, index_query)

    def run(first: int, last: int, by_key: Tensor, ordered: bool) -> None:
        sparse_kl_kernel[(last - first,)](
            index_query,
            index_key,
            gate,
            query,
            key,
            lse,
            indices,
            counts,
            weights,
            loss,
            gradients[0],
            by_key,
            gradients[2],
            first,
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
            ORDERED=ordered,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )

    if deterministic and need_gradients and indices.numel():
        _run_in_order(run, indices, gradients[1])
    elif num_tokens:
        run(0, num_tokens, gradients[1], False)
    return loss, gradients if need_gradients else None


def _run_in_order(run: Callable[[int, int, Tensor, bool], None], indices: Tensor, by_key: Tensor) -> None:
    """Launch for chunks of queries, whose selected keys get a row each, and add the rows up."""
    num_tokens, num_selected = indices.shape
    starts = range(0, (num_tokens + 1) * num_selected, num_selected)
    for first, last in cut_blocks(starts, row_bytes=4 * by_key.shape[1]):
        part = by_key.new_zeros((last - first) * num_selected, by_key.shape[1])  # a row of weight zero writes nothing
        run(first, last, part, True)
        keys = indices[first:last].flatten().long()
        add_in_order(by_key, torch.where(keys < 0, by_key.shape[0], keys), part)


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
    deterministic: bool = False,
) -> Tensor:
    """Divergence of the indexer from the attention over selected keys, differentiable in the indexer's three tensors.

    See :class:`~keyekit_kernels.dsa.divergence.IndexerKL` for what a backward pass costs.

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
        deterministic: Whether the gradient of the index key is the same bits in every run; see :func:`sparse_kl`.

    Returns:
        ``[T]`` float32 weighted divergences in nats; zero for a query without keys.

    Raises:
        ValueError: If a shape, a width or a dtype is none that the kernel takes.
    """
    check_divergence_inputs(index_query, index_key, gate, query, key, lse, row_weight)
    check_indices(indices, query.shape[0])
    if counts is None:
        counts = (indices >= 0).sum(dim=1, dtype=torch.int32)
    indexer, constants = (index_query, index_key, gate), (query, key, lse, indices.contiguous(), counts)
    return IndexerKL.apply(
        launch_sparse, (scale, deterministic), torch.is_grad_enabled(), *indexer, row_weight, *constants
    )


def is_small(tensor: Tensor, width: int, index_width: int) -> bool:
    """Whether to launch with small tiles: in the interpreter, in float32, or for heads narrower than a tensor core's tile."""
    return takes_small_tiles(tensor) or min(width, index_width) < 64


def row_weights(row_weight: Tensor | None, like: Tensor) -> Tensor:
    """The row weights ``[T]`` in float32, one where none are given."""
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


def launch_sparse(
    indexer, constants, settings, row_weight, need_gradients
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """What ``IndexerKL`` launches over selected keys; the settings are the scale and whether sums keep their order."""
    scale, deterministic = settings
    options = {
        "scale": scale,
        "need_gradients": need_gradients,
        "row_weight": row_weight,
        "deterministic": deterministic,
    }
    return sparse_kl(*indexer, *constants, **options)
