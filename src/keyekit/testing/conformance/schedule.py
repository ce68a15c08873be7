"""What every learning-rate schedule has to fulfil."""

from __future__ import annotations

import math

from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_factors", "check_short_runs")
"""Functions of this module that make up the suite."""


def check_factors(cls: type) -> None:
    """Factors lie between 0 and 1 and reach 1 somewhere."""
    schedule = make(cls)
    factors = [schedule.factor(step, 1000) for step in range(1001)]
    assert all(0.0 <= factor <= 1.0 + 1e-9 for factor in factors), "a factor lies outside 0..1"
    assert max(factors) > 0.99, "the full learning rate is never reached in 1000 steps"


def check_short_runs(cls: type) -> None:
    """Runs of one step, and steps past the end, give finite factors."""
    schedule = make(cls)
    for step, total in ((0, 1), (1, 1), (5, 3), (0, 0)):
        assert math.isfinite(schedule.factor(step, total)), f"step {step} of {total} gives no finite factor"
