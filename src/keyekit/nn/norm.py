"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis and scale; computed in float32.

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
        return functional.rms_norm(x.float(), (x.shape[-1],), self.weight.float(), self.eps).to(x.dtype)
