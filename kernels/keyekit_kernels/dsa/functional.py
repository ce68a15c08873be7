"""The public door to DeepSeek Sparse Attention: packed inputs, one call per operation, an explicit choice of implementation.

``implementation`` is ``"auto"`` (Triton on GPUs, PyTorch elsewhere), ``"triton"`` or ``"torch"``. ``auto`` says in the log
what it took, and warns where it takes PyTorch on a GPU because the kernels cannot take a head width or a type; ``"triton"``
is an error there. Shapes and types are checked always. With the environment variable ``KEYEKIT_DSA_CHECK=1`` the indices that
:func:`sparse_attention` and :func:`indexer_kl` are given are checked too, which waits for the device at each call: they have
to exist, ascend, be unique and compact, and lie in the past of their query's own sequence.

Eager calls run the autograd functions :class:`IndexerTopK`, :class:`SparseGQA` and :class:`IndexerKL`; inside
``torch.compile`` the kernels are operators of their own, and the PyTorch implementation is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from keyekit_kernels.dsa import kl_dense_torch, operators, reference
from keyekit_kernels.dsa.checks import (
    check_attention,
    check_divergence,
    check_indexer_tensors,
    check_indices,
    check_selection,
    checks_indices,
    obstacle_to_kernels,
)
from keyekit_kernels.dsa.dispatch import choose, resolve_implementation
from keyekit_kernels.dsa.indexer_topk import IndexerTopK, index_topk_operator, keep_selections
from keyekit_kernels.dsa.packed_rows import check_lengths

if TYPE_CHECKING:
    from keyekit_kernels.dsa.divergence import IndexerKL
    from keyekit_kernels.dsa.sparse_gqa import SparseGQA

__all__ = [
    "IndexerKL",
    "IndexerTopK",
    "SparseGQA",
    "index_topk",
    "indexer_kl",
    "indexer_kl_dense",
    "keep_selections",
    "resolve_implementation",
    "sparse_attention",
]

_Operation = TypeVar("_Operation", bound=Callable)
_WHERE = {"IndexerKL": "divergence", "SparseGQA": "sparse_gqa"}
"""Modules of the functions that need Triton, which is imported when it is used."""


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"keyekit_kernels.dsa.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
    The same inputs give the same indices, bit by bit, on every run and with either implementation's rule: by score
    (descending), then by index (ascending), NaN after every number.

    Args:
        query: ``[T, I, indexer_dim]`` packed indexer queries.
        key: ``[S, indexer_dim]`` packed indexer keys.
        gate: ``[T, I]`` raw head weights.
        query_lengths: Queries of each sequence; zero is allowed.
        key_lengths: Keys of each sequence, no fewer than its queries.
        topk: Keys to select per query; a query that sees fewer takes them all.
        implementation: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        ``[T, N]`` int32 rows of the packed keys, ascending, -1 tail, with N = min(topk, longest sequence).

    Raises:
        ValueError: If shapes, types or lengths do not fit, or Triton is demanded where it cannot run.
    """
    check_indexer_tensors(query, key, gate)
    check_lengths(query_lengths, key_lengths, query.shape[0], key.shape[0])
    if topk < 1:
        raise ValueError(f"topk={topk}: at least one key is needed")
    taken = choose("index_topk", implementation, query.device.type, obstacle_to_kernels({"query": query}))
    select = index_topk_operator if torch.compiler.is_compiling() else IndexerTopK.apply
    return select(query, key, gate, query_lengths, key_lengths, topk, taken)


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

    With Triton and the lengths of the sequences, adjacent queries share their keys where they agree enough: the
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
        ValueError: If shapes, types or lengths do not fit, or Triton is demanded where it cannot run.
    """
    check_attention(query, key, value, indices)
    if query_lengths is not None and key_lengths is not None:
        check_lengths(query_lengths, key_lengths, query.shape[0], key.shape[0])
    elif query_lengths is not None or key_lengths is not None:
        raise ValueError("query_lengths and key_lengths go together: give both or neither")
    if checks_indices():
        check_selection(indices, key.shape[0], query_lengths, key_lengths)
    taken = choose("sparse_attention", implementation, query.device.type, obstacle_to_kernels({"query": query}))
    if taken == "torch":
        return reference.attention_over_selection(query, key, value, indices, scale)
    if torch.compiler.is_compiling():
        output, lse = operators.sparse_attention_operator(
            query, key, value, indices, scale, query_lengths, key_lengths, deterministic
        )
        return output, lse.detach()
    from keyekit_kernels.dsa.sparse_gqa import SparseGQA, choose_union

    union = choose_union(indices, query_lengths, key_lengths, deterministic)
    return SparseGQA.apply(query, key, value, indices, union, scale, deterministic)


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
    deterministic: bool = False,
) -> Tensor:
    """Divergence of the indexer from the attention it serves, over the selected keys.

    The attention side is a constant: only the indexer receives gradients.

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries.
        key: ``[S, G, K]`` attention keys.
        indices: ``[T, N]`` int32 rows of the keys, ascending, -1 tail.
        scale: Factor on the attention's dot products.
        implementation: ``"auto"``, ``"triton"`` or ``"torch"``.
        lse: ``[T, H]`` log-sum-exp of the attention over the selection, as :func:`sparse_attention` returns it; the Triton
            kernel needs it.
        deterministic: Whether the gradient of the index key is added up in a fixed order by the Triton kernel too.

    Returns:
        ``[T]`` KL divergences in nats.

    Raises:
        ValueError: If shapes or types do not fit, or ``lse`` is missing where the kernel needs it.
    """
    check_divergence(index_query, index_key, gate, query, key, lse)
    check_indices(indices, query.shape[0])
    if checks_indices():
        check_selection(indices, key.shape[0])
    obstacle = obstacle_to_kernels({"index_query": index_query, "query": query})
    if choose("indexer_kl", implementation, query.device.type, obstacle) == "torch":
        with torch.no_grad():
            target = reference.attention_target(query, key, indices, scale)
        scores = reference.scores_at(index_query, index_key, gate, indices)
        return reference.kl_over_selection(scores, target, indices)
    if lse is None:
        raise ValueError("lse is missing: the Triton kernel of the divergence needs it, sparse_attention returns it")
    indexer = (index_query.contiguous(), index_key.contiguous(), gate.contiguous())
    constants = (
        query.detach().contiguous(),
        key.detach().contiguous(),
        lse.detach().contiguous(),
        indices.contiguous(),
    )
    if torch.compiler.is_compiling():
        wanted = _learns(*indexer)
        return operators.sparse_kl_operator(*indexer, *constants, scale, deterministic, wanted)[0]
    from keyekit_kernels.dsa.kl import sparse_indexer_kl

    return sparse_indexer_kl(*indexer, *constants, scale, deterministic=deterministic)


@_without_autocast
def indexer_kl_dense(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    scale: float,
    implementation: str = "auto",
    lse: Tensor | None = None,
) -> Tensor:
    """Divergence of the indexer from dense causal attention: the indexer's warm-up, in memory linear in the tokens.

    The attention side is a constant: only the indexer receives gradients.

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries.
        key: ``[S, G, K]`` attention keys.
        query_lengths: Queries of each sequence, its last positions; rows behind their sum are padding and give zero.
        key_lengths: Keys of each sequence.
        scale: Factor on the attention's dot products.
        implementation: ``"auto"``, ``"triton"`` or ``"torch"``.
        lse: ``[T, H]`` log-sum-exp of the dense attention, if it is known; it saves the Triton kernels a pass.

    Returns:
        ``[T]`` KL divergences in nats.

    Raises:
        ValueError: If lengths, shapes or types do not fit.
    """
    check_divergence(index_query, index_key, gate, query, key, lse)
    obstacle = obstacle_to_kernels({"index_query": index_query, "query": query})
    if choose("indexer_kl_dense", implementation, query.device.type, obstacle) == "torch":
        return kl_dense_torch.dense_indexer_kl(
            index_query, index_key, gate, query, key, query_lengths, key_lengths, scale
        )
    indexer = (index_query.contiguous(), index_key.contiguous(), gate.contiguous())
    constants = (query.detach().contiguous(), key.detach().contiguous())
    lse = None if lse is None else lse.detach().contiguous()
    if torch.compiler.is_compiling():
        settings = query_lengths, key_lengths, scale, _learns(*indexer)
        return operators.dense_kl_operator(*indexer, *constants, lse, *settings)[0]
    from keyekit_kernels.dsa.kl_dense import dense_indexer_kl

    return dense_indexer_kl(*indexer, *constants, query_lengths, key_lengths, scale, lse)


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
