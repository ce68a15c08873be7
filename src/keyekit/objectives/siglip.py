"""Sigmoid loss for image–text matching."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["SigLIP"]


class SigLIP(nn.Module):
    """Every image–caption pair of a batch is a yes/no question (SigLIP; Keye-VL 8B sheet 4.2).

    ``-(1 / B) * sum_ij log sigmoid(z_ij * logit_ij)`` with ``z`` = 1 where the pair matches and -1 elsewhere.

    Example:
        >>> import torch
        >>> SigLIP()(torch.tensor([[9.0, -9.0], [-9.0, 9.0]]), torch.eye(2, dtype=torch.bool)).item() < 0.001
        True
    """

    def forward(self, logits: Tensor, matches: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            logits: ``[B, B]`` float32, images by captions.
            matches: ``[B, B]`` bool.

        Returns:
            Scalar.
        """
        signs = matches.to(logits.dtype) * 2 - 1
        return -functional.logsigmoid(signs * logits).sum() / logits.shape[0]
