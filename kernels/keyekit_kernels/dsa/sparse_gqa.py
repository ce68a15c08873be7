"""Grouped-query attention over selected keys as one differentiable operation on Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from keyekit_kernels.dsa.attention_backward import query_backward, union_backward
from keyekit_kernels.dsa.attention_forward import query_forward, union_forward
from keyekit_kernels.dsa.union import Union

__all__ = ["WIDTHS", "SparseGQA", "check_attention", "check_selection"]

WIDTHS = (16, 32, 64, 128)
"""Head widths that the kernels take."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        if union is None:
            counts = (indices >= 0).sum(dim=1, dtype=torch.int32)
            output, lse = query_forward(query, key, value, indices, counts, scale)
            ctx.save_for_backward(query, key, value, output, lse, indices, counts)
        else:
            output, lse = union_forward(query, key, value, union, scale)
            ctx.save_for_backward(query, key, value, output, lse)
        ctx.union, ctx.scale, ctx.deterministic = union, scale, deterministic
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of query, key and value."""
        query, key, value, output, lse, *selection = ctx.saved_tensors
        inputs = grad.contiguous(), query, key, value, output, lse
        if ctx.union is None:
            indices, counts = selection
            gradients = query_backward(*inputs, indices, counts, ctx.scale)
        else:
            gradients = union_backward(*inputs, ctx.union, ctx.scale, ctx.deterministic)
        return *gradients, None, None, None, None


def check_attention(query: Tensor, key: Tensor, value: Tensor, indices: Tensor) -> None:
    """Refuse what the kernels cannot take.

    Args:
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        value: ``[S, G, K]``.
        indices: ``[T, N]`` int32.

    Raises:
        ValueError: Naming the argument, what was given and what is allowed.
    """
    num_tokens, num_heads, width = query.shape
    if width not in WIDTHS:
        raise ValueError(
            f"query has heads of width {width}: the kernels take {', '.join(map(str, WIDTHS))}; "
            "implementation='torch' takes any"
        )
    if key.shape[2] != width or value.shape != key.shape:
        raise ValueError(
            f"key is {list(key.shape)} and value {list(value.shape)}: both are [S, G, {width}] beside query {list(query.shape)}"
        )
    if num_heads % key.shape[1]:
        raise ValueError(f"query has {num_heads} heads, which do not divide into the {key.shape[1]} groups of key")
    if not query.dtype == key.dtype == value.dtype or query.dtype not in _DTYPES:
        raise ValueError(
            f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}: give all in one of float32, float16, "
            "bfloat16"
        )
    if indices.dtype != torch.int32 or indices.shape[0] != num_tokens:
        raise ValueError(f"indices are {list(indices.shape)} {indices.dtype}: give [{num_tokens}, N] int32")


def check_selection(indices: Tensor, visible: Tensor, first_key: Tensor) -> None:
    """Refuse indices that no selection makes; reads them on the host, so for tests and debugging.

    Args:
        indices: ``[T, N]`` int32 rows of the packed keys, -1 for none.
        visible: ``[T]`` keys that each query may see.
        first_key: ``[T]`` first row of its sequence.

    Raises:
        ValueError: If a row is not ascending, repeats a key, has a gap before its end, or names a key that the query cannot
            see.
    """
    used = indices >= 0
    local = indices - first_key[:, None]
    later, sooner = indices[:, 1:], indices[:, :-1]
    problems = {
        "below -1": indices < -1,
        "a gap: -1 stands before a key": used[:, 1:] & ~used[:, :-1],
        "not ascending, or a key twice": used[:, 1:] & used[:, :-1] & (later <= sooner),
        "of another sequence": used & (local < 0),
        "in the future": used & (local >= visible[:, None]),
    }
    for problem, where in problems.items():
        if where.any():
            row = int(where.any(dim=1).nonzero()[0])
            raise ValueError(f"indices of query {row} are {problem}: {indices[row].tolist()}")
