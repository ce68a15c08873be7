"""The public door to DeepSeek Sparse Attention: packed inputs, one call per operation, an explicit choice of implementation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, wraps
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from keyekit_kernels.dsa import reference

__all__ = ["index_topk", "indexer_kl", "resolve_implementation", "sparse_attention"]

_log = logging.getLogger(__name__)
_IMPLEMENTATIONS = ("torch",)
_Operation = TypeVar("_Operation", bound=Callable)


@cache
def resolve_implementation(implementation: str, device: str) -> str:
    """Turn ``"auto"`` into the implementation used on a device, and say once which one was taken.

    Raises:
        ValueError: If the name is unknown.
    """
    if implementation == "auto":
        _log.info("DSA on %s uses the 'torch' reference implementation", device)
        return "torch"
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(f"unknown DSA implementation {implementation!r}: choose 'auto' or one of {_IMPLEMENTATIONS}")
    return implementation


def _without_autocast(operation: _Operation) -> _Operation:
    """Keep the precision that the operation itself chooses: autocast would round scores, and with them the selection."""

    @wraps(operation)
    def call(query: Tensor, *arguments, **options):
        with torch.autocast(query.device.type, enabled=False):
            return operation(query, *arguments, **options)

    return call  # pyright: ignore[reportReturnType]


@torch.no_grad()
@_without_autocast
def index_topk(
    query: Tensor,
    key: Tensor,
    gate: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    topk: int,
    implementation: str = "auto",
) -> Tensor:
    """Select the keys of each query by the lightning indexer, causally and inside its own sequence.

    The queries of a sequence are its last positions. Nothing is differentiated: train the indexer with :func:`indexer_kl`.

    Args:
        query: ``[T, I, indexer_dim]`` packed indexer queries.
        key: ``[S, indexer_dim]`` packed indexer keys.
        gate: ``[T, I]`` raw head weights.
        query_lengths: Queries of each sequence.
        key_lengths: Keys of each sequence.
        topk: Keys to select per query.
        implementation: ``"auto"`` or ``"torch"``.

    Returns:
        ``[T, N]`` int32 rows of the packed keys, ascending, -1 tail, with N = min(topk, longest sequence).
    """
    resolve_implementation(implementation, query.device.type)
    width = min(topk, max(key_lengths, default=0))
    selected = torch.full((query.shape[0], width), -1, dtype=torch.int32, device=query.device)
    query_starts = (0, *accumulate(query_lengths))
    key_starts = (0, *accumulate(key_lengths))
    for sequence, (num_queries, num_keys) in enumerate(zip(query_lengths, key_lengths, strict=True)):
        if num_queries == 0:
            continue
        rows = slice(query_starts[sequence], query_starts[sequence] + num_queries)
        start = key_starts[sequence]
        scores = reference.indexer_scores(query[rows], key[start : start + num_keys], gate[rows])
        visible = torch.arange(num_keys - num_queries + 1, num_keys + 1, device=query.device)
        local = reference.select_topk(scores, visible, topk)
        selected[rows, : local.shape[1]] = torch.where(local < 0, local, local + start)
    return selected


@_without_autocast
def sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, scale: float, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention over selected keys; see :func:`keyekit_kernels.dsa.reference.attention_over_selection`.

    Args:
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        value: ``[S, G, K]``.
        indices: ``[T, N]`` int32 rows of ``key``, -1 for none.
        scale: Factor on the dot products.
        implementation: ``"auto"`` or ``"torch"``.

    Returns:
        Output ``[T, H, K]`` and log-sum-exp ``[T, H]``.
    """
    resolve_implementation(implementation, query.device.type)
    return reference.attention_over_selection(query, key, value, indices, scale)


@_without_autocast
def indexer_kl(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    indices: Tensor,
    scale: float,
    implementation: str = "auto",
) -> Tensor:
    """Divergence of the indexer from the attention it serves, over the selected keys.

    The attention side is a constant: only the indexer receives gradients.

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries.
        key: ``[S, G, K]`` attention keys.
        indices: ``[T, N]`` int32 rows of the keys, -1 for none.
        scale: Factor on the attention's dot products.
        implementation: ``"auto"`` or ``"torch"``.

    Returns:
        ``[T]`` KL divergences in nats.
    """
    resolve_implementation(implementation, query.device.type)
    with torch.no_grad():
        target = reference.attention_target(query, key, indices, scale)
    scores = reference.scores_at(index_query, index_key, gate, indices)
    return reference.kl_over_selection(scores, target, indices)
