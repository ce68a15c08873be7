"""Any loss of a row of logits, summed over rows: logits exist for a chunk at a time and become gradients at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from keyekit.objectives.linear_cross_entropy import chunk_length

__all__ = ["RowLoss", "add_product", "product_dtype", "sum_over_rows"]

RowLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""``logits [rows, V]`` in float32 or wider and the rows they are of, to ``losses [rows]`` and ``notes [rows, n]``.

Losses are added up and differentiated by the logits; notes are kept row by row, for meters, without a gradient.
"""

_BUFFERS = 4
"""Chunks are this much shorter than those of the cross-entropy, because a loss written with autograd keeps several copies."""


def sum_over_rows(
    hidden: Tensor, weight: Tensor, loss: RowLoss, num_notes: int, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sum a loss of the rows of ``hidden @ weight.T``, whose logits are never held whole.

    Each chunk's logits become its loss and, at once, through autograd inside the chunk, its share of the gradients; nothing is
    recomputed in the backward pass, which only scales. The gradient of the weight is added up in float32.

    Args:
        hidden: ``[T, D]`` hidden states.
        weight: ``[V, D]`` output layer.
        loss: What to take of each row. It must not depend on other rows, and must not need other gradients.
        num_notes: Columns of its notes.
        chunk_size: Rows per chunk; by default as many as keep all copies of a chunk's logits within a few times
            :func:`~keyekit.objectives.linear_cross_entropy.chunk_length`.

    Returns:
        Scalar sum, float32 or wider, which can be differentiated once, and notes ``[T, num_notes]``.

    Example:
        >>> hidden, weight = torch.randn(5, 4), torch.randn(7, 4)
        >>> def energy(logits, rows):
        ...     return logits.logsumexp(1), logits.amax(1, keepdim=True)
        >>> total, largest = sum_over_rows(hidden, weight, energy, num_notes=1, chunk_size=2)
        >>> torch.allclose(total, (hidden @ weight.T).logsumexp(1).sum(), atol=1e-5), largest.shape
        (True, torch.Size([5, 1]))
    """
    if chunk_size is None:
        chunk_size = max(chunk_length(weight.shape[0], hidden.device.type) // _BUFFERS, 1)
    # Inside an autograd function gradients are switched off: whether any is wanted is only known out here.
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _SumOverRows.apply(hidden, weight, loss, num_notes, chunk_size, learns)


def product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Dtype in which an output layer is applied: autocast's, or the wider of both."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def add_product(total: Tensor, slope: Tensor, states: Tensor) -> None:
    """Add ``slope.T @ states`` to ``total``, in place where the dtypes agree."""
    if total.dtype == slope.dtype:
        total.addmm_(slope.T, states)
    else:
        total.add_(slope.T @ states)


class _SumOverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, loss: RowLoss, num_notes: int, chunk_size: int, learns: bool
    ) -> tuple[Tensor, Tensor]:
        kind = product_dtype(hidden, weight)
        wide = torch.promote_types(kind, torch.float32)
        states, matrix = hidden.to(kind), weight.to(kind)
        hidden_gradient = torch.zeros_like(hidden) if learns and hidden.requires_grad else None
        weight_gradient = torch.zeros_like(weight, dtype=wide) if learns and weight.requires_grad else None
        total, notes = hidden.new_zeros((), dtype=wide), hidden.new_zeros((len(hidden), num_notes), dtype=wide)
        for start in range(0, len(hidden), chunk_size):
            rows = slice(start, start + chunk_size)
            logits = functional.linear(states[rows], matrix).to(wide)
            with torch.set_grad_enabled(learns), torch.autocast(hidden.device.type, enabled=False):
                losses, note = loss(logits.requires_grad_(learns), rows)
                if learns:
                    (slope,) = torch.autograd.grad(losses.sum(), logits)
            total += losses.detach().sum()
            notes[rows] = note.detach()
            if hidden_gradient is not None:
                hidden_gradient[rows] = slope.to(kind) @ matrix
            if weight_gradient is not None:
                add_product(weight_gradient, slope.to(kind), states[rows])
        ctx.gradients = [hidden_gradient, None if weight_gradient is None else weight_gradient.to(weight.dtype)]
        ctx.mark_non_differentiable(notes)
        return total, notes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a sum over rows are handed over once: compute the loss again")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if gradient is None else gradient.mul_(scale) for gradient in gradients), *(None,) * 4
