"""The clipped surrogate: gain from an importance ratio only as far as the ratio stays near 1."""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.objectives.policy.base import PolicyTerms, Rollouts
from keyekit.objectives.policy.kl import LARGEST_LOG_RATIO
from keyekit.objectives.sequences import sequence_sums, spread

__all__ = ["check_clip", "clipped_terms", "sequence_log_ratios"]


def clipped_terms(log_ratios: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> PolicyTerms:
    """``-min(r A, clip(r, 1 - low, 1 + high) A)`` (PPO, arXiv:1707.06347).

    Args:
        log_ratios: ``[T]`` logarithms of the ratios r.
        advantages: ``[T]`` advantages A.
        clip_low: How far below 1 a ratio may fall before a bad token stops losing probability.
        clip_high: How far above 1 it may rise before a good token stops gaining.

    Example:
        >>> terms = clipped_terms(torch.tensor([1.5, 1.5, 0.5]).log(), torch.tensor([1.0, -1.0, -1.0]), 0.2, 0.2)
        >>> terms.losses, terms.high.tolist(), terms.low.tolist()
        (tensor([-1.2000,  1.5000,  0.8000]), [True, False, False], [False, False, True])
    """
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1 - clip_low, 1 + clip_high)
    return PolicyTerms(
        losses=-torch.minimum(ratios * advantages, clipped * advantages),
        ratios=ratios,
        low=(ratios < 1 - clip_low) & (advantages < 0),
        high=(ratios > 1 + clip_high) & (advantages > 0),
    )


def sequence_log_ratios(log_ratios: Tensor, rollouts: Rollouts, mean: bool) -> Tensor:
    """Hand every token the log-ratio of its whole answer, ``[T]``: the sum over its tokens, or their mean."""
    sums = sequence_sums(log_ratios, rollouts.segments)
    if mean:
        sums = sums / sequence_sums(rollouts.mask.to(sums.dtype), rollouts.segments).clamp(min=1)
    return spread(sums.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO), rollouts.segments)


def check_clip(clip_low: float, clip_high: float) -> None:
    """Refuse bounds that no ratio could meet.

    Raises:
        ValueError: If ``clip_low`` lies outside 0..1 or ``clip_high`` is negative.
    """
    if not 0 <= clip_low <= 1 or clip_high < 0:
        raise ValueError(f"clip_low={clip_low} must lie between 0 and 1, clip_high={clip_high} must not be negative")
