"""Learning-rate schedules at their corners."""

import itertools

import pytest

from keyekit.optim.schedules import WarmupCosine, WarmupStableDecay


def test_cosine_rises_to_one_and_falls_to_the_floor() -> None:
    schedule = WarmupCosine(warmup_steps=10, floor=0.1)
    factors = [schedule.factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert all(a <= b for a, b in itertools.pairwise(factors[:11]))
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))
    assert schedule.factor(1000, 100) == pytest.approx(0.1)


def test_stable_decay_stays_and_then_falls_linearly() -> None:
    schedule = WarmupStableDecay(warmup_steps=10, decay_fraction=0.2, floor=0.0)
    assert schedule.factor(50, 100) == 1.0
    assert schedule.factor(79, 100) == 1.0
    assert schedule.factor(90, 100) == pytest.approx(0.5)
    assert schedule.factor(100, 100) == pytest.approx(0.0)


def test_no_warmup_starts_at_one() -> None:
    assert WarmupCosine(warmup_steps=0).factor(0, 10) == 1.0
