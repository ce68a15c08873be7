"""Output layer and cross-entropy as one operation: logits exist for a chunk at a time and become gradients at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["chunk_length", "linear_cross_entropy"]

_CHUNK_BYTES = {"cpu": 64 * 2**20, "cuda": 512 * 2**20}
"""Size of one chunk of float32 logits: a GPU wants taller products than a processor."""
_SHORTEST = 64
"""Fewest rows of a chunk; below, a product costs more than it computes."""


def chunk_length(vocab_size: int, device: str = "cpu") -> int:
    """Positions whose float32 logits fill a chunk on a type of device: 64 MiB on a processor, 512 MiB on a GPU.

    Example:
        >>> chunk_length(151_936), chunk_length(151_936, "cuda"), chunk_length(8_192)
        (110, 883, 2048)
    """
    return max(_CHUNK_BYTES.get(device, _CHUNK_BYTES["cuda"]) // (4 * vocab_size), _SHORTEST)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int | None = None) -> Tensor:
    """Sum of cross-entropies of ``hidden @ weight.T``, whose logits are never held whole.

    Each chunk's logits become its loss and, at once, its share of the gradients; nothing is recomputed in the backward pass,
    which only scales. The gradient of the weight is added up in float32. Under autocast the products run in its dtype.

    Args:
        hidden: ``[T, D]`` hidden states.
        weight: ``[V, D]`` output layer.
        labels: ``[T]`` int64 targets, all valid.
        chunk_size: Positions per chunk; by default :func:`chunk_length`.

    Returns:
        Scalar sum in nats, float32 (float64 for float64 input). It can be differentiated once.

    Example:
        >>> hidden, weight = torch.randn(5, 4), torch.randn(7, 4)
        >>> loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 6, 1, 1, 3]))
        >>> torch.allclose(loss, functional.cross_entropy(hidden @ weight.T, torch.tensor([0, 6, 1, 1, 3]), reduction="sum"))
        True
    """
    if chunk_size is None:
        chunk_size = chunk_length(weight.shape[0], hidden.device.type)
    # Inside an autograd function gradients are switched off: whether any is wanted is only known out here.
    learns = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return _LinearCrossEntropy.apply(hidden, weight, labels, chunk_size, learns)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int, learns: bool) -> Tensor:
        kind = _product_dtype(hidden, weight)
        wide = torch.promote_types(kind, torch.float32)
        states, matrix = hidden.to(kind), weight.to(kind)
        hidden_gradient = torch.empty_like(hidden) if learns and hidden.requires_grad else None
        weight_gradient = torch.zeros_like(weight, dtype=wide) if learns and weight.requires_grad else None
        total = hidden.new_zeros((), dtype=wide)
        for start in range(0, hidden.shape[0], chunk_size):
            rows = slice(start, start + chunk_size)
            loss, slope = _loss_and_slope(states[rows], matrix, labels[rows], wide, learns)
            total += loss
            if hidden_gradient is not None:
                hidden_gradient[rows] = slope @ matrix
            if weight_gradient is not None:
                _add_product(weight_gradient, slope, states[rows])
            del slope  # before the next chunk is made
        ctx.gradients = [hidden_gradient, None if weight_gradient is None else weight_gradient.to(weight.dtype)]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of a linear cross-entropy are handed over once: compute the loss again")
        gradients, ctx.gradients = ctx.gradients, None
        hidden, weight = (None if gradient is None else gradient.mul_(scale) for gradient in gradients)
        return hidden, weight, None, None, None


def _loss_and_slope(
    states: Tensor, matrix: Tensor, labels: Tensor, wide: torch.dtype, learns: bool
) -> tuple[Tensor, Tensor]:
    """A chunk's summed loss, and its derivative by the logits (their probabilities less one at the label)."""
    # Log-probabilities, probabilities and derivative share one buffer.
    scores = torch.log_softmax(functional.linear(states, matrix).to(wide), dim=1)
    picked = labels[:, None]
    loss = -scores.gather(1, picked).sum()
    if learns:
        scores.exp_().scatter_add_(1, picked, scores.new_full((1, 1), -1.0).expand_as(picked))
    return loss, scores.to(matrix.dtype)


def _product_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return torch.promote_types(hidden.dtype, weight.dtype)


def _add_product(total: Tensor, slope: Tensor, states: Tensor) -> None:
    """Add ``slope.T @ states`` to ``total``, in place where the dtypes agree."""
    if total.dtype == slope.dtype:
        total.addmm_(slope.T, states)
    else:
        total.add_(slope.T @ states)
