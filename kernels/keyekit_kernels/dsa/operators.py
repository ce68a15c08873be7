"""The Triton kernels as operators of PyTorch, for graphs of ``torch.compile``: opaque, with shapes and gradients that it knows.

Eager calls go to the autograd functions instead, which can hand a union from the forward to the backward pass. An operator
only returns tensors, so here the backward pass builds the union anew.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

__all__ = ["dense_kl_operator", "sparse_attention_operator", "sparse_kl_operator"]

_LENGTHS = "SymInt[]? query_lengths, SymInt[]? key_lengths"
_INDEXER = "Tensor index_query, Tensor index_key, Tensor gate"
_GRADIENTS = "Tensor by_query, Tensor by_key, Tensor by_gate"
_KL_RESULT = "(Tensor, Tensor, Tensor, Tensor)"


@custom_op(
    "keyekit_dsa::sparse_attention",
    mutates_args=(),
    schema=f"(Tensor query, Tensor key, Tensor value, Tensor indices, float scale, {_LENGTHS}, bool deterministic) "
    "-> (Tensor, Tensor)",
)
def sparse_attention_operator(
    query, key, value, indices, scale, query_lengths, key_lengths, deterministic
) -> tuple[Tensor, Tensor]:
    """:class:`~keyekit_kernels.dsa.sparse_gqa.SparseGQA` with its choice of variant."""
    from keyekit_kernels.dsa.sparse_gqa import attend, choose_union

    union = choose_union(indices, query_lengths, key_lengths, deterministic)
    return attend(query, key, value, indices, union, scale)


@sparse_attention_operator.register_fake
def _(query, key, value, indices, scale, query_lengths, key_lengths, deterministic):
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=torch.float32)


@custom_op(
    "keyekit_dsa::sparse_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, Tensor indices, float scale, "
    f"{_LENGTHS}, bool deterministic) -> (Tensor, Tensor, Tensor)",
)
def _sparse_attention_backward(
    grad, query, key, value, output, lse, indices, scale, query_lengths, key_lengths, deterministic
):
    from keyekit_kernels.dsa.sparse_gqa import attend_backward, choose_union

    union = choose_union(indices, query_lengths, key_lengths, deterministic)
    return attend_backward(grad, query, key, value, output, lse, indices, union, scale, deterministic)


@_sparse_attention_backward.register_fake
def _(grad, query, key, value, output, lse, indices, scale, query_lengths, key_lengths, deterministic):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep_attention(ctx, inputs, output) -> None:
    query, key, value, indices, *ctx.settings = inputs
    ctx.save_for_backward(query, key, value, *output, indices)


def _differentiate_attention(ctx, grad: Tensor, _: Tensor | None):
    gradients = _sparse_attention_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return *gradients, None, None, None, None, None


sparse_attention_operator.register_autograd(_differentiate_attention, setup_context=_keep_attention)


@custom_op(
    "keyekit_dsa::sparse_kl",
    mutates_args=(),
    schema=f"({_INDEXER}, Tensor query, Tensor key, Tensor lse, Tensor indices, float scale, bool deterministic, "
    f"bool need_gradients) -> {_KL_RESULT}",
)
def sparse_kl_operator(
    index_query, index_key, gate, query, key, lse, indices, scale, deterministic, need_gradients
) -> tuple[Tensor, ...]:
    """Divergence over selected keys, and its gradients, as :class:`~keyekit_kernels.dsa.divergence.IndexerKL` keeps them."""
    from keyekit_kernels.dsa.kl import launch_sparse

    indexer, constants = (index_query, index_key, gate), _with_counts(query, key, lse, indices)
    return _flat(launch_sparse(indexer, constants, (scale, deterministic), None, need_gradients), indexer)


@sparse_kl_operator.register_fake
def _(index_query, index_key, gate, query, key, lse, indices, scale, deterministic, need_gradients):
    row_dtype = torch.float32 if index_query.dtype == torch.float16 else index_query.dtype
    gate_dtype = torch.float32 if gate.dtype == torch.float16 else gate.dtype
    return _fake_kl((index_query, index_key, gate), (row_dtype, torch.float32, gate_dtype), need_gradients)


@custom_op(
    "keyekit_dsa::sparse_kl_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INDEXER}, {_GRADIENTS}, Tensor query, Tensor key, Tensor lse, Tensor indices, float scale, "
    "bool deterministic) -> (Tensor, Tensor, Tensor)",
)
def _sparse_kl_backward(
    grad, index_query, index_key, gate, by_query, by_key, by_gate, query, key, lse, indices, scale, deterministic
):
    from keyekit_kernels.dsa.divergence import scaled_gradients
    from keyekit_kernels.dsa.kl import launch_sparse

    indexer, gradients = (index_query, index_key, gate), (by_query, by_key, by_gate)
    constants = _with_counts(query, key, lse, indices)
    found = scaled_gradients(launch_sparse, (scale, deterministic), indexer, None, gradients, constants, grad)
    return tuple(found)


@_sparse_kl_backward.register_fake
def _(grad, index_query, index_key, gate, by_query, by_key, by_gate, query, key, lse, indices, scale, deterministic):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (index_query, index_key, gate))


def _keep_sparse_kl(ctx, inputs, output) -> None:
    *tensors, scale, deterministic, _ = inputs
    ctx.settings = scale, deterministic
    ctx.save_for_backward(*tensors[:3], *output[1:], *tensors[3:])


def _differentiate_sparse_kl(ctx, grad: Tensor, *_: Tensor | None):
    return *_sparse_kl_backward(grad, *ctx.saved_tensors, *ctx.settings), *(None,) * 7


sparse_kl_operator.register_autograd(_differentiate_sparse_kl, setup_context=_keep_sparse_kl)


@custom_op(
    "keyekit_dsa::dense_kl",
    mutates_args=(),
    schema=f"({_INDEXER}, Tensor query, Tensor key, Tensor? lse, SymInt[] query_lengths, SymInt[] key_lengths, "
    "float scale, bool need_gradients) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def dense_kl_operator(
    index_query, index_key, gate, query, key, lse, query_lengths, key_lengths, scale, need_gradients
) -> tuple[Tensor, ...]:
    """Divergence from dense attention, its gradients as ``IndexerKL`` keeps them, and the attention's log-sum-exp."""
    from keyekit_kernels.dsa.kl_dense import attention_log_normaliser, launch_dense

    normaliser = attention_log_normaliser(query, key, query_lengths, key_lengths, scale) if lse is None else lse.clone()
    indexer, settings = (index_query, index_key, gate), (query_lengths, key_lengths, scale)
    found = launch_dense(indexer, (query, key, normaliser), settings, None, need_gradients)
    return *_flat(found, indexer), normaliser


@dense_kl_operator.register_fake
def _(index_query, index_key, gate, query, key, lse, query_lengths, key_lengths, scale, need_gradients):
    found = _fake_kl((index_query, index_key, gate), (torch.float32,) * 3, need_gradients)
    return *found, query.new_empty(query.shape[:2], dtype=torch.float32)


@custom_op(
    "keyekit_dsa::dense_kl_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_INDEXER}, {_GRADIENTS}, Tensor query, Tensor key, Tensor lse, SymInt[] query_lengths, "
    "SymInt[] key_lengths, float scale) -> (Tensor, Tensor, Tensor)",
)
def _dense_kl_backward(
    grad,
    index_query,
    index_key,
    gate,
    by_query,
    by_key,
    by_gate,
    query,
    key,
    lse,
    query_lengths,
    key_lengths,
    scale,
):
    from keyekit_kernels.dsa.divergence import scaled_gradients
    from keyekit_kernels.dsa.kl_dense import launch_dense

    indexer, gradients = (index_query, index_key, gate), (by_query, by_key, by_gate)
    settings = query_lengths, key_lengths, scale
    return tuple(scaled_gradients(launch_dense, settings, indexer, None, gradients, (query, key, lse), grad))


@_dense_kl_backward.register_fake
def _(grad, index_query, index_key, gate, *_):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (index_query, index_key, gate))


def _keep_dense_kl(ctx, inputs, output) -> None:
    *tensors, _, query_lengths, key_lengths, scale, _ = inputs
    ctx.settings = query_lengths, key_lengths, scale
    ctx.save_for_backward(*tensors[:3], *output[1:4], *tensors[3:], output[4])


def _differentiate_dense_kl(ctx, grad: Tensor, *_: Tensor | None):
    return *_dense_kl_backward(grad, *ctx.saved_tensors, *ctx.settings), *(None,) * 7


dense_kl_operator.register_autograd(_differentiate_dense_kl, setup_context=_keep_dense_kl)


def _with_counts(query: Tensor, key: Tensor, lse: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
    return query, key, lse, indices, (indices >= 0).sum(dim=1, dtype=torch.int32)


def _flat(found: tuple[Tensor, tuple[Tensor, ...] | None], indexer: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Loss and gradients side by side, empty where none were wanted."""
    loss, gradients = found
    return loss, *((tensor.new_empty(0) for tensor in indexer) if gradients is None else gradients)


def _fake_kl(indexer: tuple[Tensor, ...], dtypes: tuple[torch.dtype, ...], need_gradients: bool) -> tuple[Tensor, ...]:
    loss = indexer[0].new_empty(indexer[0].shape[0], dtype=torch.float32)
    if not need_gradients:
        return loss, *(tensor.new_empty(0) for tensor in indexer)
    return loss, *(tensor.new_empty(tensor.shape, dtype=dtype) for tensor, dtype in zip(indexer, dtypes, strict=True))
