"""Intervals against SciPy-free independent formulas: Wilson's by its defining equation, the bootstrap by brute force."""

from __future__ import annotations

import math
import random

import pytest
import torch

from keyekit.metrics.intervals import bootstrap_interval, mean_interval, wilson_interval

Z = 1.959963984540054  # the 97.5 % point of the normal distribution


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 10), (10, 10), (3, 7), (1, 1), (0, 1), (513, 1337), (2670, 3200)]
)
def test_the_ends_of_wilsons_interval_are_the_proportions_that_the_score_test_just_accepts(successes, trials):
    low, high = wilson_interval(successes, trials)
    share = successes / trials
    for end in (low, high):
        if 1e-12 < end < 1 - 1e-12:
            assert abs(share - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / trials), rel=1e-9)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    assert high - low > 0


def test_more_confidence_is_a_wider_interval():
    narrow, wide = wilson_interval(40, 100, 0.5), wilson_interval(40, 100, 0.99)
    assert wide[0] < narrow[0] < 0.4 < narrow[1] < wide[1]


def brute_force(values: list[float], units: list[int], draws: int) -> list[float]:
    """Means under resampling of whole units, one draw after the other."""
    source = random.Random(1)
    members = {unit: [value for value, other in zip(values, units, strict=True) if other == unit] for unit in units}
    names, means = sorted(members), []
    for _ in range(draws):
        drawn = [value for unit in source.choices(names, k=len(names)) for value in members[unit]]
        means.append(sum(drawn) / len(drawn))
    return sorted(means)


def test_the_bootstrap_resamples_whole_units():
    source = random.Random(0)
    units = [unit for unit in range(30) for _ in range(1 + unit % 5)]
    level = {unit: source.random() for unit in range(30)}
    values = [min(max(level[unit] + source.gauss(0, 0.02), 0), 1) for unit in units]
    low, high = bootstrap_interval(torch.tensor(values, dtype=torch.float64), torch.tensor(units), draws=4000)
    means = brute_force(values, units, 4000)
    assert low == pytest.approx(means[100], abs=0.02)
    assert high == pytest.approx(means[3899], abs=0.02)
    alone = bootstrap_interval(torch.tensor(values, dtype=torch.float64), torch.arange(len(values)), draws=4000)
    assert alone[1] - alone[0] < 0.75 * (high - low), "questions of one video are no independent evidence"


def test_the_bootstrap_depends_on_the_seed_and_not_on_the_order():
    values, units = torch.rand(50, dtype=torch.float64), torch.arange(50) // 3
    order = torch.randperm(50)
    first = bootstrap_interval(values, units, seed=3)
    assert bootstrap_interval(values[order], units[order], seed=3) == pytest.approx(first, abs=1e-12)
    assert bootstrap_interval(values, units, seed=4) != first


def test_the_bootstrap_in_several_chunks(monkeypatch):
    values, units = torch.rand(40, dtype=torch.float64), torch.arange(40)
    whole = bootstrap_interval(values, units, draws=1001)
    monkeypatch.setattr("keyekit.metrics.intervals._CHUNK", 40 * 100)
    assert bootstrap_interval(values, units, draws=1001) == pytest.approx(whole, abs=1e-12)


def test_the_interval_suits_the_values():
    def interval(values, units):
        return mean_interval(torch.tensor(values, dtype=torch.float64), torch.tensor(units))

    assert interval([1, 0, 0], [1, 2, 3]) == wilson_interval(1, 3)
    assert interval([0, 0, 0, 0], [1, 1, 2, 2]) == wilson_interval(0, 2), (
        "four questions about two videos are two trials"
    )
    assert interval([1, 0], [1, 1]) is None
    assert interval([1], [1]) == wilson_interval(1, 1)
    mixed = [0.5, 0.25, 1.0]
    assert interval(mixed, [1, 2, 3]) == bootstrap_interval(torch.tensor(mixed, dtype=torch.float64), torch.arange(3))
