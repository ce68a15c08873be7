"""Root-mean-square normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis and scale; computed in float32, or in float64 if that is given.

    Args:
        dim: Size of the last axis.
        eps: Added to the mean square.

    Example:
        >>> RMSNorm(4)(torch.full((1, 4), 3.0)).round(decimals=3).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x [..., dim]``; the result has the dtype of ``x``."""
        accurate = torch.promote_types(x.dtype, torch.float32)
        full, weight = x.to(accurate), self.weight.to(accurate)
        if full.is_cpu and torch.is_grad_enabled():
            normalised = _Normalise.apply(full, weight, self.eps)
            assert isinstance(normalised, Tensor)
            return normalised.to(x.dtype)
        return functional.rms_norm(full, (x.shape[-1],), weight, self.eps).to(x.dtype)


class _Normalise(torch.autograd.Function):
    """``functional.rms_norm`` with its gradient in closed form.

    GPUs have one kernel for it. On a processor PyTorch differentiates the norm operation by operation, which passes over the
    activations three times as often as is needed.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """``y = x r w`` with ``r = (mean(x^2) + eps)^(-1/2)``."""
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """``dx = r (w dy - x r^2 mean(w x dy))`` and ``dw = sum(r x dy)``: both sums are products with the same ``x dy``."""
        x, weight, inverse = ctx.saved_tensors
        product = (grad * x).reshape(-1, x.shape[-1])
        grad_weight = product.T.mv(inverse.flatten()) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        along = product.mv(weight).view_as(inverse).mul_(inverse.square()).div_(x.shape[-1])
        return torch.mul(grad, weight).addcmul_(x, along, value=-1).mul_(inverse), grad_weight, None
