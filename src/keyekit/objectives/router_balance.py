"""Load balance of routers: the losses that even it out, and the measure of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keyekit.nn.moe.base import RouterStatistics

__all__ = ["balance_loss", "load_imbalance", "router_z_loss", "sequence_balance_loss"]


def balance_loss(statistics: Sequence[RouterStatistics]) -> Tensor:
    """Auxiliary loss that is 1 for a perfectly even load and grows towards E as one expert takes all.

    ``E * sum_e f_e * P_e`` with the share of visits ``f`` and the mean probability ``P``, averaged over layers (Switch
    Transformer, arXiv:2101.03961, with ``f`` normalised to add up to 1 whatever the number of active experts). transformers
    does not normalise, so that its value for a layer is A times this one.

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


def sequence_balance_loss(statistics: Sequence[RouterStatistics]) -> Tensor:
    """The balance loss of every sequence by itself, averaged over sequences and layers (DeepSeek-V3, arXiv:2412.19437).

    It is what keeps single sequences from leaning on few experts where a bias evens out the whole batch. Sequences without a
    real token, such as the padding of a pack, do not count.

    Args:
        statistics: One entry per mixture layer, with sums per sequence.

    Returns:
        Scalar; the gradient flows through the probabilities alone.

    Raises:
        ValueError: If the routers were not told the segments of the pack.
    """
    losses = []
    for layer in statistics:
        sequences = layer.sequences
        if sequences is None:
            raise ValueError("the statistics have no sums per sequence: pass segments= to the mixture or the router")
        shares = sequences.counts / sequences.counts.sum(dim=-1, keepdim=True).clamp(min=1)
        means = sequences.probabilities / sequences.num_tokens.clamp(min=1)[:, None]
        each = layer.counts.numel() * (shares * means).sum(dim=-1)  # zero for an empty sequence
        losses.append(each.sum() / (sequences.num_tokens > 0).sum().clamp(min=1))
    return torch.stack(losses).mean()


def router_z_loss(statistics: Sequence[RouterStatistics]) -> Tensor:
    """Mean square of the log-sum-exp of a token's router logits, averaged over layers (ST-MoE, arXiv:2202.08906).

    It keeps logits small, where float rounding moves no token to another expert.

    Args:
        statistics: One entry per mixture layer.

    Returns:
        Scalar.

    Raises:
        ValueError: If a router has no logits.
    """
    losses = []
    for layer in statistics:
        if layer.squared_logsumexp is None:
            raise ValueError("a router without logits, such as Hash, has no z-loss: set its weight to 0")
        losses.append(layer.squared_logsumexp / max(layer.num_tokens, 1))
    return torch.stack(losses).mean()


def load_imbalance(statistics: Sequence[RouterStatistics]) -> Tensor:
    """Largest load of an expert over the mean load, averaged over layers; 1 is even."""
    return torch.stack([layer.counts.max() / layer.counts.mean().clamp(min=1e-9) for layer in statistics]).mean()
