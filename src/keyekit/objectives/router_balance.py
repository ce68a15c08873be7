"""Load balance of routers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keyekit.nn.moe.base import RouterStatistics

__all__ = ["balance_loss", "load_imbalance"]


def balance_loss(statistics: Sequence[RouterStatistics]) -> Tensor:
    """Auxiliary loss that is 1 for a perfectly even load and grows towards E as one expert takes all.

    ``E * sum_e f_e * P_e`` with the share of visits ``f`` and the mean probability ``P``, averaged over layers.

    Args:
        statistics: One entry per mixture layer.

    Returns:
        Scalar; the gradient flows through the probabilities alone.
    """
    losses = []
    for layer in statistics:
        shares = layer.counts / layer.counts.sum().clamp(min=1)
        losses.append(layer.counts.numel() * (shares * layer.probabilities / max(layer.num_tokens, 1)).sum())
    return torch.stack(losses).mean()


def load_imbalance(statistics: Sequence[RouterStatistics]) -> Tensor:
    """Largest load of an expert over the mean load, averaged over layers; 1 is even."""
    return torch.stack([layer.counts.max() / layer.counts.mean().clamp(min=1e-9) for layer in statistics]).mean()
