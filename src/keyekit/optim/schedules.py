"""Learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

__all__ = ["Schedule", "WarmupCosine", "WarmupStableDecay"]


class Schedule(ABC):
    """Base of the schedules: a factor on the learning rate for every optimizer step."""

    @abstractmethod
    def factor(self, step: int, total_steps: int) -> float:
        """Factor for ``step`` (from 0) of ``total_steps``."""


class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine down to a floor.

    Args:
        warmup_steps: Steps of the warm-up.
        floor: Factor at the end.

    Example:
        >>> schedule = WarmupCosine(warmup_steps=2, floor=0.0)
        >>> [round(schedule.factor(step, 6), 2) for step in range(7)]
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0]
    """

    def __init__(self, warmup_steps: int = 100, floor: float = 0.1) -> None:
        self.warmup_steps = warmup_steps
        self.floor = floor

    def factor(self, step: int, total_steps: int) -> float:
        """See :class:`Schedule`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min((step - self.warmup_steps) / max(total_steps - self.warmup_steps, 1), 1.0)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupStableDecay(Schedule):
    """Linear warm-up, a plateau, then a linear decay to a floor.

    Args:
        warmup_steps: Steps of the warm-up.
        decay_fraction: Share of all steps spent decaying.
        floor: Factor at the end.
    """

    def __init__(self, warmup_steps: int = 100, decay_fraction: float = 0.2, floor: float = 0.0) -> None:
        self.warmup_steps = warmup_steps
        self.decay_fraction = decay_fraction
        self.floor = floor

    def factor(self, step: int, total_steps: int) -> float:
        """See :class:`Schedule`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        start = total_steps * (1 - self.decay_fraction)
        if step < start:
            return 1.0
        progress = min((step - start) / max(total_steps - start, 1), 1.0)
        return 1.0 - (1.0 - self.floor) * progress
