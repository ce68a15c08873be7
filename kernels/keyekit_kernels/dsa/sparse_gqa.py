"""Grouped-query attention over selected keys as one differentiable operation on Triton kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from keyekit_kernels.dsa.attention_backward import query_backward, union_backward
from keyekit_kernels.dsa.attention_forward import query_forward, union_forward
from keyekit_kernels.dsa.dispatch import announce_variant
from keyekit_kernels.dsa.union import Union, build_union

__all__ = ["SparseGQA", "attend", "attend_backward", "choose_union"]

_UNION_GROUP = 8
_UNION_LIMIT = 5.5
"""Largest U / k of eight queries at which unions beat single queries in the forward pass (docs/evidence/dsa-gpu.md)."""


class SparseGQA(torch.autograd.Function):
    """Attention of each query over its selected keys, query by query or over unions.

    ``SparseGQA.apply(query, key, value, indices, union, scale, deterministic)`` returns the output ``[T, H, K]`` and the
    natural log-sum-exp ``[T, H]``, which is not differentiated. With a union the indices are not read.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        indices: Tensor,
        union: Union | None,
        scale: float,
        deterministic: bool,
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp; keeps the inputs, both results and the selection for the backward pass."""
        output, lse = attend(query, key, value, indices, union, scale)
        ctx.save_for_backward(query, key, value, output, lse, indices if union is None else None)
        ctx.union, ctx.scale, ctx.deterministic = union, scale, deterministic
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        settings = {"union": ctx.union, "scale": ctx.scale, "deterministic": ctx.deterministic}
        gradients = attend_backward(grad, *ctx.saved_tensors, **settings)
        return *gradients, None, None, None, None


def attend(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, union: Union | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output ``[T, H, K]`` and log-sum-exp ``[T, H]`` of :class:`SparseGQA`, from its arguments."""
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    if union is not None:
        return union_forward(query, key, value, union, scale)
    counts = (indices >= 0).sum(dim=1, dtype=torch.int32)
    return query_forward(query, key, value, indices.contiguous(), counts, scale)


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    indices: Tensor | None,
    union: Union | None,
    scale: float,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``query [T, H, K]``, ``key`` and ``value [S, G, K]``, from what :func:`attend` took and returned."""
    inputs = grad.contiguous(), query.contiguous(), key.contiguous(), value.contiguous(), output, lse
    if union is not None:
        return union_backward(*inputs, union, scale, deterministic)
    assert indices is not None
    counts = (indices >= 0).sum(dim=1, dtype=torch.int32)
    return query_backward(*inputs, indices.contiguous(), counts, scale)


def choose_union(
    indices: Tensor, query_lengths: Sequence[int] | None, key_lengths: Sequence[int] | None, deterministic: bool
) -> Union | None:
    """The union of adjacent queries if it pays, or if the order of sums needs it; measures U / k and logs the variant.

    Args:
        indices: ``[T, N]`` int32.
        query_lengths: Queries of each sequence; without them there are no neighbours.
        key_lengths: Keys of each sequence.
        deterministic: Whether gradients of keys and values are added up in a fixed order.

    Returns:
        A union, or None to go query by query.

    Raises:
        ValueError: If the order is to be fixed without lengths.
    """
    if query_lengths is None or key_lengths is None:
        if deterministic:
            raise ValueError("deterministic=True needs query_lengths and key_lengths with the Triton kernels")
        return None
    if max(query_lengths, default=0) <= 1:  # while decoding nobody has a neighbour, and nobody shares a key's gradient
        return None
    union = build_union(indices, query_lengths, key_lengths, _UNION_GROUP)
    pays = union.sharing <= _UNION_LIMIT
    needed = pays or deterministic
    variant = "over unions" if needed else "query by query"
    announce_variant("sparse attention", variant, f"U/k is about {union.sharing:.1f}")
    return union if needed else None
