"""The public door to DeepSeek Sparse Attention: packed inputs, one call per operation, an explicit choice of implementation."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib.util import find_spec
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.union import Union, build_union

__all__ = ["index_topk", "indexer_kl", "resolve_implementation", "sparse_attention"]

_log = logging.getLogger(__name__)
_IMPLEMENTATIONS = ("torch", "triton")
_Operation = TypeVar("_Operation", bound=Callable)
_UNION_GROUP = 16
_UNION_LIMIT = 4.2
"""Largest U / k at which unions beat single queries (dsa-kernels sheet 3.2, dispatch rule)."""


@cache
def resolve_implementation(implementation: str, device: str) -> str:
    """Turn ``"auto"`` into the implementation used on a type of device, and say once which one was taken.

    Raises:
        ValueError: If the name is unknown, or Triton is demanded where it cannot run.
    """
    if implementation == "auto":
        taken = "triton" if device == "cuda" and find_spec("triton") is not None else "torch"
        _log.info("DSA on %s uses the %r implementation", device, taken)
        return taken
    if implementation not in _IMPLEMENTATIONS:
        raise ValueError(f"unknown DSA implementation {implementation!r}: choose 'auto' or one of {_IMPLEMENTATIONS}")
    if implementation == "triton":
        _require_triton(device)
    return implementation


def _require_triton(device: str) -> None:
    if find_spec("triton") is None:
        raise ValueError("implementation='triton' needs the package triton: pip install triton, or choose 'torch'")
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"implementation='triton' needs a GPU, the tensors are on {device}: choose 'torch' or 'auto', or set "
            "TRITON_INTERPRET=1 to interpret the kernels"
        )


@cache
def _announce(variant: str, sharing: float) -> None:
    _log.info("sparse attention runs %s: U/k is about %.1f", variant, sharing)


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
        implementation: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        ``[T, N]`` int32 rows of the packed keys, ascending, -1 tail, with N = min(topk, longest sequence).
    """
    if resolve_implementation(implementation, query.device.type) == "triton":
        from keyekit_kernels.dsa import selection

        return selection.index_topk(
            query.contiguous(), key.contiguous(), gate.contiguous(), query_lengths, key_lengths, topk
        )
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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: Tensor,
    scale: float,
    implementation: str = "auto",
    query_lengths: Sequence[int] | None = None,
    key_lengths: Sequence[int] | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention over selected keys; see :func:`keyekit_kernels.dsa.reference.attention_over_selection`.

    With Triton and the lengths of the sequences, sixteen adjacent queries share their keys where they agree enough: the
    union's size is measured and the variant logged.

    Args:
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        value: ``[S, G, K]``.
        indices: ``[T, N]`` int32 rows of ``key``, ascending, -1 tail.
        scale: Factor on the dot products.
        implementation: ``"auto"``, ``"triton"`` or ``"torch"``.
        query_lengths: Queries of each sequence; without them Triton goes query by query.
        key_lengths: Keys of each sequence.
        deterministic: Whether gradients of keys and values are added up in a fixed order; needs the lengths with Triton.

    Returns:
        Output ``[T, H, K]`` and natural log-sum-exp ``[T, H]``.

    Raises:
        ValueError: If the tensors do not fit the kernels.
    """
    if resolve_implementation(implementation, query.device.type) == "torch":
        return reference.attention_over_selection(query, key, value, indices, scale)
    from keyekit_kernels.dsa.sparse_gqa import SparseGQA, check_attention

    check_attention(query, key, value, indices)
    union = None
    if query_lengths is not None and key_lengths is not None:
        if max(query_lengths, default=0) <= 1:  # while decoding nobody has a neighbour
            return SparseGQA.apply(query, key, value, indices, None, scale, False)
        union = _shared_keys(indices, query_lengths, key_lengths, deterministic)
    elif deterministic:
        raise ValueError("deterministic=True needs query_lengths and key_lengths with the Triton kernels")
    return SparseGQA.apply(query, key, value, indices, union, scale, deterministic)


def _shared_keys(
    indices: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int], deterministic: bool
) -> Union | None:
    """The union of adjacent queries if it pays, or if the order of sums needs it."""
    union = build_union(indices, query_lengths, key_lengths, _UNION_GROUP)
    pays = union.sharing <= _UNION_LIMIT
    _announce("over unions" if pays or deterministic else "query by query", round(union.sharing, 1))
    return union if pays or deterministic else None


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
    lse: Tensor | None = None,
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
        implementation: ``"auto"``, ``"triton"`` or ``"torch"``.
        lse: ``[T, H]`` log-sum-exp of the attention over the selection, as :func:`sparse_attention` returns it; the Triton
            kernel needs it.

    Returns:
        ``[T]`` KL divergences in nats.

    Raises:
        ValueError: If ``lse`` is missing where the kernel needs it.
    """
    if resolve_implementation(implementation, query.device.type) == "triton":
        from keyekit_kernels.dsa.kl import sparse_indexer_kl

        if lse is None:
            raise ValueError("the Triton kernel of the divergence needs lse, which sparse_attention returns")
        return sparse_indexer_kl(
            index_query.contiguous(),
            index_key.contiguous(),
            gate.contiguous(),
            query.detach().contiguous(),
            key.detach().contiguous(),
            lse.contiguous(),
            indices.contiguous(),
            scale,
        )
    with torch.no_grad():
        target = reference.attention_target(query, key, indices, scale)
    scores = reference.scores_at(index_query, index_key, gate, indices)
    return reference.kl_over_selection(scores, target, indices)
