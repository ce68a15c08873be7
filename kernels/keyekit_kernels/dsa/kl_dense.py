"""The indexer's warm-up: its divergence from dense causal attention, without a matrix of L x L.

Chunks of queries are worked on one after the other; a chunk keeps eight bytes for each pair of query and key, and is as small
as :data:`_PAIRS` asks. Four kernels do one sum each (:mod:`keyekit_kernels.dsa.dense_kl_kernels`): the attention of all heads
is a product and a power of two for each, and the two gradients are one product for each indexer head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keyekit_kernels.dsa.attention_tiles import EMPTY, LOG2E
from keyekit_kernels.dsa.dense_kl_kernels import (
    BITS,
    key_gradient_kernel,
    query_gradient_kernel,
    score_kernel,
    target_kernel,
)
from keyekit_kernels.dsa.dense_lse import attention_log_normaliser, check_order
from keyekit_kernels.dsa.divergence import IndexerKL, check_divergence_inputs
from keyekit_kernels.dsa.kl import RAISE, TINY, is_small, row_weights
from keyekit_kernels.dsa.launch import Launch, call
from keyekit_kernels.dsa.packed_rows import Chunk, cut_chunks, cut_tiles, to_device

__all__ = ["attention_log_normaliser", "dense_indexer_kl", "dense_kl", "launch_dense"]

_LAUNCHES = {
    "scores": Launch(block=128, warps=4, stages=3, queries=64),
    "target": Launch(block=128, warps=4, stages=3, queries=64),
    "query gradient": Launch(block=64, warps=4, stages=3, queries=64),
    "key gradient": Launch(block=64, warps=4, stages=3, queries=64, registers=128),
}
_SMALL = Launch(block=16, warps=4, stages=1, queries=16)
"""For the interpreter, where borders are tested and not speed, and for float32, whose tiles fill shared memory."""
_SHARED_WIDTH = 256
"""Width of the heads that one program of the gradient of the query takes together: they share what is read of the pairs."""
_PAIRS = 2**27
"""Most pairs of a chunk, unless a single tile of queries has more: a gigabyte in sixteen bits."""
_PROGRAMS = 528
"""Programs of the gradient of the query, where there are few tiles: four for each multiprocessor of an H100."""


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
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Divergence of the indexer from dense causal attention, with the gradients of its sum; the same bits in every run.

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

    Returns:
        ``[T]`` float32 weighted divergences in nats, and the float32 gradients of their sum by index query, index key and
        gate, or None.

    Raises:
        ValueError: If a sequence has more queries than keys.
    """
    check_order(query_lengths, key_lengths)
    launches = (
        dict.fromkeys(_LAUNCHES, _SMALL) if is_small(index_query, query.shape[2], index_query.shape[2]) else _LAUNCHES
    )
    loss = index_query.new_zeros(index_query.shape[0], dtype=torch.float32)
    weights = row_weights(row_weight, index_query)
    work = _Work(
        index_query,
        index_key,
        gate,
        query,
        key,
        lse,
        weights,
        scale,
        tuple(query_lengths),
        tuple(key_lengths),
        launches,
    )
    if not need_gradients:
        for chunk in work.chunks():
            work.compare(chunk, loss, None)
        return loss * weights, None
    gradients = tuple(torch.zeros_like(tensor, dtype=torch.float32) for tensor in (index_query, index_key, gate))
    by_query, by_key, by_gate = gradients
    # Weights are as small as one over the tokens of a batch: they enter half precision relative to the largest.
    largest = weights.abs().max().clamp(min=TINY.value)
    for chunk in work.chunks():
        pairs = work.pairs(chunk)
        work.compare(chunk, loss, pairs)
        work.add_query_gradient(chunk, pairs, by_query, by_gate)
        work.add_key_gradient(chunk, pairs, weights / largest, by_key)
    return loss * weights, (by_query, by_key.mul_(largest / RAISE.value), by_gate)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """What a chunk keeps of its pairs of query and key.

    Args:
        differences: ``[rows, width]`` in the indexer's dtype: its probability less the attention's, raised.
        active: ``[rows, words, width]`` int16, a bit for every indexer head whose product is above zero.
    """

    differences: Tensor
    active: Tensor


@dataclass(frozen=True, slots=True)
class _Work:
    """The tensors of :func:`dense_kl`, and what is done with a chunk of queries."""

    index_query: Tensor
    index_key: Tensor
    gate: Tensor
    query: Tensor
    key: Tensor
    lse: Tensor
    weights: Tensor
    scale: float
    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    launches: dict[str, Launch]

    @property
    def block(self) -> int:
        """Keys of a tile, the same in all kernels."""
        return self.launches["scores"].block

    @property
    def index_shape(self) -> dict[str, int]:
        """Constants of the kernels."""
        return {"HEADS": self.index_query.shape[1], "WIDTH": self.index_query.shape[2]}

    @property
    def index_scale(self) -> float:
        """Keye-VL-2.0 sheet 4.1 item 6."""
        return self.index_query.shape[2] ** -0.5

    def chunks(self) -> list[Chunk]:
        """Queries that are worked on at the same time."""
        return [
            chunk
            for chunk in cut_chunks(self.query_lengths, self.key_lengths, _PAIRS, self.block)
            if chunk.width and chunk.stop > chunk.start
        ]

    def tiles(self, chunk: Chunk, queries: int) -> Tensor:
        """``[tiles, 4]`` int32 as the kernels read them."""
        tiles = cut_tiles(self.query_lengths, self.key_lengths, queries, rows=range(chunk.start, chunk.stop))
        return to_device(tiles, torch.int32, self.query.device).view(-1, 4)

    def pairs(self, chunk: Chunk) -> _Pairs:
        """Room for what a chunk keeps."""
        rows, heads = chunk.stop - chunk.start, self.index_query.shape[1]
        words = -(-heads // BITS.value)
        return _Pairs(
            self.index_query.new_empty(rows, chunk.width),
            self.index_query.new_empty(rows, words, chunk.width, dtype=torch.int16),
        )

    def compare(self, chunk: Chunk, loss: Tensor, pairs: _Pairs | None) -> None:
        """Write the divergences of a chunk's queries into ``loss`` and fill ``pairs``."""
        rows, steps = chunk.stop - chunk.start, chunk.width // self.block
        empty = self.index_query.new_empty
        scores = empty(rows, chunk.width, dtype=torch.float32)
        normalisers = torch.full((rows, steps), EMPTY.value, device=scores.device)
        launch = self.launches["scores"]
        tiles = self.tiles(chunk, launch.queries)
        call(
            score_kernel,
            (steps, len(tiles)),
            self.index_query,
            self.index_key,
            self.gate,
            self.weights,
            tiles,
            scores,
            None if pairs is None else pairs.active,
            normalisers,
            chunk.start,
            chunk.width,
            **self.index_shape,
            SCALE=self.index_scale,
            **_options(launch),
        )
        losses = torch.zeros_like(normalisers)
        launch = self.launches["target"]
        groups = self.key.shape[1]
        call(
            target_kernel,
            (steps, len(tiles)),
            self.query,
            self.key,
            self.lse,
            self.weights,
            tiles,
            scores,
            normalisers.logsumexp(1),
            None if pairs is None else pairs.differences,
            losses,
            self.scale * LOG2E.value,
            chunk.start,
            chunk.width,
            PER_GROUP=self.query.shape[1] // groups,
            GROUPS=groups,
            WIDTH=self.query.shape[2],
            **_options(launch),
        )
        loss[chunk.start : chunk.stop] = losses.sum(1)

    def add_query_gradient(self, chunk: Chunk, pairs: _Pairs, by_query: Tensor, by_gate: Tensor) -> None:
        """Write a chunk's gradients of index query and gate."""
        launch, heads = self.launches["query gradient"], self.index_query.shape[1]
        tiles, rows = self.tiles(chunk, launch.queries), chunk.stop - chunk.start
        shared = max(n for n in (1, 2, 4) if heads % n == 0 and (n == 1 or n * by_query.shape[2] <= _SHARED_WIDTH))
        steps = chunk.width // self.block
        splits = min(max(_PROGRAMS // (len(tiles) * (heads // shared)), 1), steps)
        per_split = -(-steps // splits)
        splits = -(-steps // per_split)
        query_parts = by_query.new_empty(splits, rows, *by_query.shape[1:])
        gate_parts = by_gate.new_empty(splits, rows, heads)
        call(
            query_gradient_kernel,
            (len(tiles), heads // shared, splits),
            self.index_query,
            self.index_key,
            self.gate,
            self.weights,
            tiles,
            pairs.differences,
            pairs.active,
            query_parts,
            gate_parts,
            chunk.start,
            rows,
            chunk.width,
            per_split * self.block,
            **self.index_shape,
            SHARED=shared,
            SCALE=self.index_scale,
            **_options(launch),
        )
        torch.sum(query_parts, 0, out=by_query[chunk.start : chunk.stop])
        torch.sum(gate_parts, 0, out=by_gate[chunk.start : chunk.stop])

    def add_key_gradient(self, chunk: Chunk, pairs: _Pairs, relative: Tensor, by_key: Tensor) -> None:
        """Add a chunk's share of the gradient of the index key, up to a factor."""
        launch, own = self.launches["key gradient"], slice(chunk.start, chunk.stop)
        factor = self.gate[own].float() * (relative[own, None] * self.index_scale)
        gated = (self.index_query[own].float() * factor[..., None]).masked_fill(
            (relative[own] == 0)[:, None, None], 0.0
        )
        sequences = self.tiles(chunk, chunk.stop - chunk.start)
        call(
            key_gradient_kernel,
            (chunk.width // launch.block, len(sequences)),
            gated.to(self.index_query.dtype),
            self.weights,
            sequences,
            pairs.differences,
            pairs.active,
            by_key,
            chunk.start,
            chunk.width,
            **self.index_shape,
            **_options(launch),
        )


def _options(launch: Launch) -> dict[str, int | None]:
    return {
        "QUERIES": launch.queries,
        "BLOCK": launch.block,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "maxnreg": launch.registers,
    }


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
    settings = (tuple(query_lengths), tuple(key_lengths), scale)
    indexer, constants = (index_query, index_key, gate), (query, key, lse)
    return IndexerKL.apply(launch_dense, settings, torch.is_grad_enabled(), *indexer, row_weight, *constants)


def launch_dense(
    indexer, constants, settings, row_weight, need_gradients
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """What ``IndexerKL`` launches over all keys; the settings are both lengths and the scale."""
    return dense_kl(*indexer, *constants, *settings, need_gradients=need_gradients, row_weight=row_weight)
