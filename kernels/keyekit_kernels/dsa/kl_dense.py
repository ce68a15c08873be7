"""Triton kernels of the indexer's warm-up: its divergence from dense causal attention, without a matrix of L x L.

One program takes a tile of queries of one sequence and walks over their keys twice, as the sparse kernel does. Teacher and
student are summed over heads in a loop, so a tile of queries and keys is all that exists of either. Gradients are added to
float32 memory: those of queries by the one program that owns them, those of keys by all, atomically.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.attention_tiles import EMPTY
from keyekit_kernels.dsa.dense_lse import attention_log_normaliser, tile_table
from keyekit_kernels.dsa.divergence import IndexerKL, check_divergence_inputs
from keyekit_kernels.dsa.kl import RAISE, TINY, divergence_tile, is_small, row_weights
from keyekit_kernels.dsa.launch import Launch
from keyekit_kernels.dsa.ordered_sum import add_in_order, cut_blocks
from keyekit_kernels.dsa.packed_rows import to_device

__all__ = ["attention_log_normaliser", "dense_indexer_kl", "dense_kl", "launch_dense"]

_DIVERGENCE = Launch(block=64, warps=8, stages=2, queries=64)
_SMALL = Launch(block=16, warps=4, stages=1, queries=16)
"""For the interpreter, where borders are tested and not speed, and for float32, whose tiles fill shared memory."""


@triton.jit
def _scores(index_query, gate, real, k_index, HEADS: tl.constexpr, WIDTH: tl.constexpr, SCALE: tl.constexpr):
    """Scores ``[queries, keys]`` of a tile, of which ``index_query`` and ``gate`` point at the first query."""
    row, channel = tl.arange(0, real.shape[0]), tl.arange(0, WIDTH)
    scores = tl.zeros([real.shape[0], k_index.shape[0]], tl.float32)
    for head in range(HEADS):
        q = tl.load(index_query + (row[:, None] * HEADS + head) * WIDTH + channel, mask=real[:, None], other=0.0)
        gates = tl.load(gate + row * HEADS + head, mask=real, other=0.0).to(tl.float32) * SCALE
        products = tl.dot(q, tl.trans(k_index), input_precision="ieee")
        scores += tl.maximum(products, 0.0, propagate_nan=tl.PropagateNan.ALL) * gates[:, None]
    return scores


@triton.jit
def _target(query, key, lse, real, inside, scale, PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Mean over all heads of the attention of a tile ``[queries, keys]``; entries of hidden keys are meaningless."""
    row, column, channel = tl.arange(0, real.shape[0]), tl.arange(0, inside.shape[0]), tl.arange(0, WIDTH)
    target = tl.zeros([real.shape[0], inside.shape[0]], tl.float32)
    for group in range(GROUPS):
        k = tl.load(key + (column[:, None] * GROUPS + group) * WIDTH + channel, mask=inside[:, None], other=0.0)
        for member in range(PER_GROUP):
            head = row * (GROUPS * PER_GROUP) + group * PER_GROUP + member
            q = tl.load(query + head[:, None] * WIDTH + channel, mask=real[:, None], other=0.0)
            row_lse = tl.load(lse + head, mask=real, other=0.0)
            target += tl.exp(tl.dot(q, tl.trans(k), input_precision="ieee") * scale - row_lse[:, None])
    return target / (GROUPS * PER_GROUP)


@triton.jit
def dense_kl_kernel(
    index_query,  # [T, INDEX_HEADS, INDEX_WIDTH]
    index_key,  # [S, INDEX_WIDTH]
    gate,  # [T, INDEX_HEADS]
    query,  # [T, H, WIDTH]
    key,  # [S, GROUPS, WIDTH]
    lse,  # [T, H] float32
    tiles,  # [tiles, 4] int32: first query, queries, first key, keys that the first query sees
    row_weight,  # [T] float32
    loss,  # [T] float32
    grad_index_query,  # [T, INDEX_HEADS, INDEX_WIDTH] float32, zero before
    grad_index_key,  # [S, INDEX_WIDTH] float32, zero before; with line_starts a row for each tile and key
    grad_gate,  # [T, INDEX_HEADS] float32, zero before
    line_starts,  # [tiles] int64 or None
    scale,
    INDEX_HEADS: tl.constexpr,
    INDEX_WIDTH: tl.constexpr,
    INDEX_SCALE: tl.constexpr,
    PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    GRADIENTS: tl.constexpr,
) -> None:
    """One program per tile of queries."""
    tile = tiles + tl.program_id(0) * 4
    row, column, channel = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, INDEX_WIDTH)
    size, visible = tl.load(tile + 1), tl.load(tile + 3)
    # Wide numbers are scalars: a tile's own offsets fit into 32 bits and are constants to the compiler.
    first, key_start = tl.load(tile).to(tl.int64), tl.load(tile + 2).to(tl.int64)
    index_query += first * (INDEX_HEADS * INDEX_WIDTH)
    grad_index_query += first * (INDEX_HEADS * INDEX_WIDTH)
    gate += first * INDEX_HEADS
    grad_gate += first * INDEX_HEADS
    query += first * (GROUPS * PER_GROUP * WIDTH)
    lse += first * (GROUPS * PER_GROUP)
    weight = tl.load(row_weight + first + row, mask=row < size, other=0.0)
    real = weight != 0.0
    bound = tl.where(tl.max(real.to(tl.int32), 0) == 0, 0, visible + size - 1)
    at_key = column[:, None] * INDEX_WIDTH + channel

    # Pass 1: the log-sum-exp of the scores.
    peak, total = tl.full([QUERIES], EMPTY, tl.float32), tl.zeros([QUERIES], tl.float32)
    for start in range(0, bound, BLOCK):
        inside = start + column < bound
        k_index = tl.load(index_key + (key_start + start) * INDEX_WIDTH + at_key, mask=inside[:, None], other=0.0)
        scores = _scores(index_query, gate, real, k_index, INDEX_HEADS, INDEX_WIDTH, INDEX_SCALE)
        scores = tl.where(start + column[None, :] < visible + row[:, None], scores, EMPTY)
        higher = tl.maximum(peak, tl.max(scores, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(scores - higher[:, None]), 1)
        peak = higher
    log_normaliser = peak + tl.log(tl.maximum(total, TINY))

    # Pass 2: target, divergence and gradients. Weights are as small as one over the tokens of a batch: they enter half
    # precision relative to the tile's largest.
    largest = tl.maximum(tl.max(tl.abs(weight), 0), TINY)
    relative, restore = weight / largest * RAISE, largest / RAISE
    divergence = tl.zeros([QUERIES], tl.float32)
    for start in range(0, bound, BLOCK):
        inside = start + column < bound
        keys = key + (key_start + start) * (GROUPS * WIDTH)
        target = _target(query, keys, lse, real, inside, scale, PER_GROUP, GROUPS, WIDTH)
        k_index = tl.load(index_key + (key_start + start) * INDEX_WIDTH + at_key, mask=inside[:, None], other=0.0)
        scores = _scores(index_query, gate, real, k_index, INDEX_HEADS, INDEX_WIDTH, INDEX_SCALE)
        allowed = (start + column[None, :] < visible + row[:, None]) & real[:, None]
        terms, difference = divergence_tile(target, scores, log_normaliser[:, None], allowed)
        divergence += tl.sum(terms, 1)
        if GRADIENTS:
            difference = difference * relative[:, None]
            by_key = tl.zeros([BLOCK, INDEX_WIDTH], tl.float32)
            for head in range(INDEX_HEADS):
                at = (row[:, None] * INDEX_HEADS + head) * INDEX_WIDTH + channel
                q = tl.load(index_query + at, mask=real[:, None], other=0.0)
                gates = tl.load(gate + row * INDEX_HEADS + head, mask=real, other=0.0).to(tl.float32) * INDEX_SCALE
                products = tl.dot(q, tl.trans(k_index), input_precision="ieee")
                by_gate = tl.sum(difference * tl.maximum(products, 0.0), 1) * (INDEX_SCALE * restore)
                slope = tl.where(products > 0.0, difference, 0.0).to(k_index.dtype)
                by_query = tl.dot(slope, k_index, input_precision="ieee") * (gates * restore)[:, None]
                gated = (q.to(tl.float32) * gates[:, None]).to(q.dtype)
                by_key += tl.dot(tl.trans(slope), gated, input_precision="ieee")
                tl.atomic_add(grad_gate + row * INDEX_HEADS + head, by_gate, mask=real, sem="relaxed")
                tl.atomic_add(grad_index_query + at, by_query, mask=real[:, None], sem="relaxed")
            if line_starts is not None:
                line = tl.load(line_starts + tl.program_id(0)) + start
                tl.store(grad_index_key + line * INDEX_WIDTH + at_key, by_key * restore, mask=inside[:, None])
            else:
                at_keys = grad_index_key + (key_start + start) * INDEX_WIDTH + at_key
                tl.atomic_add(at_keys, by_key * restore, mask=inside[:, None], sem="relaxed")
    tl.store(loss + first + row, divergence * weight, mask=row < size)


def dense_kl(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    lse: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    scale: float,
    need_gradients: bool = True,
    row_weight: Tensor | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Divergence of the indexer from dense causal attention, with the gradients of its sum.

    Args:
        index_query: ``[T, I, indexer_dim]`` contiguous, like all tensors here.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries.
        key: ``[S, G, K]`` attention keys.
        lse: ``[T, H]`` natural log-sum-exp of the attention, from the attention or :func:`attention_log_normaliser`.
        query_lengths: Queries of each sequence, its last positions; rows behind their sum are left out.
        key_lengths: Keys of each sequence.
        scale: Factor on the attention's dot products.
        need_gradients: Whether to compute gradients.
        row_weight: ``[T]`` factors on the divergences; a tile of weights zero costs nothing. All one if left out.
        deterministic: Whether the gradient of the index key is added up in a fixed order, from partial rows
            (:mod:`keyekit_kernels.dsa.ordered_sum`). Otherwise the order of its atomic additions differs from run to run. All
            other sums belong to one program each, which adds in its own order.

    Returns:
        ``[T]`` float32 weighted divergences in nats, and the float32 gradients of their sum by index query, index key and
        gate, or None.
    """
    num_tokens, index_heads, index_width = index_query.shape
    num_heads, width = query.shape[1:]
    groups = key.shape[1]
    loss = index_query.new_zeros(num_tokens, dtype=torch.float32)
    gradients = (loss, loss, loss)
    if need_gradients:
        by_query, by_key, by_gate = (torch.zeros_like(x, dtype=torch.float32) for x in (index_query, index_key, gate))
        gradients = by_query, by_key, by_gate
    launch = _SMALL if is_small(index_query, width, index_width) else _DIVERGENCE
    tiles, table = tile_table(query_lengths, key_lengths, launch.queries, query.device)
    weights = row_weights(row_weight, index_query)

    def run(table: Tensor, by_key: Tensor, line_starts: Tensor | None) -> None:
        dense_kl_kernel[(table.shape[0],)](
            index_query,
            index_key,
            gate,
            query,
            key,
            lse,
            table,
            weights,
            loss,
            gradients[0],
            by_key,
            gradients[2],
            line_starts,
            scale,
            INDEX_HEADS=index_heads,
            INDEX_WIDTH=index_width,
            INDEX_SCALE=index_width**-0.5,  # Keye-VL-2.0 sheet 4.1 item 6
            PER_GROUP=num_heads // groups,
            GROUPS=groups,
            WIDTH=width,
            QUERIES=launch.queries,
            BLOCK=launch.block,
            GRADIENTS=need_gradients,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )

    if tiles and deterministic and need_gradients:
        _run_in_order(run, tiles, table, gradients[1])
    elif tiles:
        run(table, gradients[1], None)
    return loss, gradients if need_gradients else None


def _run_in_order(
    run: Callable[[Tensor, Tensor, Tensor], None], tiles: list[tuple[int, ...]], table: Tensor, by_key: Tensor
) -> None:
    """Launch for chunks of tiles, whose keys get a row each, and add the rows up."""
    bounds = [visible + size - 1 for _, size, _, visible in tiles]  # keys that a tile walks over
    starts = [0, *accumulate(bounds)]
    lines = to_device(starts, torch.int64, by_key.device)
    for first, last in cut_blocks(starts, row_bytes=4 * by_key.shape[1]):
        count, own = starts[last] - starts[first], slice(first, last)
        part = by_key.new_zeros(count, by_key.shape[1])  # a tile of weights zero writes nothing
        begins = lines[own] - starts[first]
        run(table[own], part, begins)
        origins = (table[own, 2] - begins).repeat_interleave(lines[first : last + 1].diff(), output_size=count)
        add_in_order(by_key, origins + torch.arange(count, device=by_key.device), part)


def dense_indexer_kl(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    scale: float,
    lse: Tensor | None = None,
    row_weight: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """Divergence of the indexer from dense causal attention, differentiable in the indexer's three tensors.

    See :class:`~keyekit_kernels.dsa.divergence.IndexerKL` for what a backward pass costs.

    Args:
        index_query: ``[T, I, indexer_dim]`` contiguous, like all tensors here.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries, a constant.
        key: ``[S, G, K]`` attention keys, a constant.
        query_lengths: Queries of each sequence, its last positions; rows behind their sum are padding and give zero.
        key_lengths: Keys of each sequence.
        scale: Factor on the attention's dot products.
        lse: ``[T, H]`` float32 natural log-sum-exp of the attention, a constant; computed if left out.
        row_weight: ``[T]`` float32 factors on the divergences, zero for rows that do not count.
        deterministic: Whether the gradient of the index key is the same bits in every run; see :func:`dense_kl`.

    Returns:
        ``[T]`` float32 weighted divergences in nats.

    Raises:
        ValueError: If a shape, a width, a dtype or a length is none that the kernels take.
    """
    check_divergence_inputs(index_query, index_key, gate, query, key, lse, row_weight)
    for name, lengths, tensor in (("query_lengths", query_lengths, query), ("key_lengths", key_lengths, key)):
        if sum(lengths) > tensor.shape[0]:
            raise ValueError(f"{name} sum to {sum(lengths)}, but there are {tensor.shape[0]} rows")
    if lse is None:
        lse = attention_log_normaliser(query.detach(), key.detach(), query_lengths, key_lengths, scale)
    settings = (tuple(query_lengths), tuple(key_lengths), scale, deterministic)
    indexer, constants = (index_query, index_key, gate), (query, key, lse)
    return IndexerKL.apply(launch_dense, settings, torch.is_grad_enabled(), *indexer, row_weight, *constants)


def launch_dense(
    indexer, constants, settings, row_weight, need_gradients
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """What ``IndexerKL`` launches over all keys; the settings are both lengths, the scale, whether sums keep their order."""
    *lengths, scale, deterministic = settings
    options = {
        "scale": scale,
        "need_gradients": need_gradients,
        "row_weight": row_weight,
        "deterministic": deterministic,
    }
    return dense_kl(*indexer, *constants, *lengths, **options)
