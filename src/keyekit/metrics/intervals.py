"""How certain a mean over questions is: Wilson's interval for independent right and wrong, the bootstrap for the rest."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = ["bootstrap_interval", "mean_interval", "wilson_interval"]

_CHUNK = 2**24
"""Most numbers of resampled units that stand in memory at once."""


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion (Wilson, 1927); it stays within 0 and 1 and has a width at 0 and 1, too.

    Args:
        successes: How many trials succeeded.
        trials: How many there were, at least 1.
        confidence: Probability that the interval is to cover the true proportion with.

    Example:
        >>> low, high = wilson_interval(0, 10)
        >>> round(low, 4), round(high, 4)
        (0.0, 0.2775)
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap_interval(
    values: Tensor, units: Tensor, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of a mean under resampling of whole units.

    Questions about one video succeed and fail together, so that videos are drawn, each with all its questions.

    Args:
        values: ``[N]`` float64.
        units: ``[N]`` int64, what each value belongs to.
        confidence: Share of the resampled means between the ends.
        draws: Number of resampled means.
        seed: Seed of the draws; the same values and units give the same interval, in whatever order they come.
    """
    names, place = units.unique(return_inverse=True)
    count = len(names)
    sums = values.new_zeros(count).index_add_(0, place, values)
    sizes = values.new_zeros(count).index_add_(0, place, torch.ones_like(values))
    generator = torch.Generator().manual_seed(seed)
    means, rows = [], max(_CHUNK // count, 1)
    for start in range(0, draws, rows):
        drawn = torch.randint(count, (min(rows, draws - start), count), generator=generator)
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    return low, high


def mean_interval(
    values: Tensor, units: Tensor, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """The interval that suits the values.

    Wilson's where every unit has one value that is 0 or 1. Also Wilson's, over units, where all values are 0 or all are 1:
    the bootstrap would claim certainty. ``None`` for a single unit with several values, from which nothing follows about
    others. The bootstrap otherwise.

    Args:
        values: ``[N]`` float64 between 0 and 1, at least one.
        units: ``[N]`` int64, what each value belongs to.
        confidence: See the two intervals.
        draws: See :func:`bootstrap_interval`.
        seed: See :func:`bootstrap_interval`.
    """
    count, mean = len(units.unique()), values.mean().item()
    constant = mean in (0.0, 1.0)
    single_choices = count == len(values) and bool(((values == 0) | (values == 1)).all())
    if constant or single_choices:
        return wilson_interval(mean * count, count, confidence)
    if count == 1:
        return None
    return bootstrap_interval(values, units, confidence, draws, seed)
