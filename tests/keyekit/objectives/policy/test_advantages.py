"""Advantages against loops over groups; broken rewards and lonely answers are counted and never used."""

import math
import statistics

import pytest
import torch

from keyekit.batch import Segments
from keyekit.objectives.policy.advantages import group_advantages, returns_to_go, whiten

REWARDS = torch.tensor([1.0, 0.0, 0.5, 3.0, 3.0, -2.0, 4.0], dtype=torch.float64)
GROUPS = torch.tensor([5, 2, 5, 2, 5, 9, 9])


def others(i: int) -> list[float]:
    return [REWARDS[j].item() for j in range(7) if GROUPS[j] == GROUPS[i] and j != i]


def group(i: int) -> list[float]:
    return [*others(i), REWARDS[i].item()]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "batch", "none"])
def test_equals_loops_over_groups_of_different_sizes(baseline, scale) -> None:
    expected = []
    for i, reward in enumerate(REWARDS.tolist()):
        taken = {
            "mean": statistics.mean(group(i)),
            "leave_one_out": statistics.mean(others(i)),
            "batch": statistics.mean(REWARDS.tolist()),
            "none": 0.0,
        }[baseline]
        expected.append((reward - taken) / (statistics.stdev(group(i)) + 0.01 if scale == "group" else 1))
    if scale == "batch":
        deviation = statistics.stdev(expected)
        expected = [value / (deviation + 0.01) for value in expected]
    found = group_advantages(REWARDS, GROUPS, baseline, scale, epsilon=0.01)
    torch.testing.assert_close(found.values, torch.tensor(expected, dtype=torch.float64))
    assert found.kept.all()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("baseline", ["mean", "leave_one_out", "batch"])
def test_a_broken_reward_changes_nothing_for_the_others(baseline, scale, broken) -> None:
    with_it = group_advantages(
        torch.cat([REWARDS, torch.tensor([broken, broken])]), torch.cat([GROUPS, torch.tensor([5, 9])]), baseline, scale
    )
    torch.testing.assert_close(with_it.values[:7], group_advantages(REWARDS, GROUPS, baseline, scale).values)
    assert with_it.values[7:].tolist() == [0, 0]
    assert with_it.kept.tolist() == [True] * 7 + [False] * 2
    assert (with_it.num_broken, with_it.num_alone) == (2, 0)


def test_a_group_of_one_has_no_advantage_and_is_counted() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 5.0, 2.0, math.nan]), torch.tensor([0, 0, 1, 2, 2])
    found = group_advantages(rewards, groups)
    assert found.kept.tolist() == [True, True, False, False, False]
    assert not found.values[2:].any()
    assert (found.num_alone, found.num_broken) == (2, 1)
    whole = group_advantages(rewards, groups, baseline="batch", scale="batch")  # here an answer needs no companion
    assert whole.kept.tolist() == [True] * 4 + [False]
    assert whole.num_alone == 0


def test_equal_rewards_have_no_advantage() -> None:
    for scale in ("group", "batch", "none"):
        assert not group_advantages(torch.full((4,), 0.7), torch.tensor([0, 0, 1, 1]), scale=scale).values.any()


def test_no_answer_and_only_broken_ones() -> None:
    assert group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).values.shape == (0,)
    found = group_advantages(torch.full((3,), math.nan), torch.zeros(3, dtype=torch.int64), "batch", "batch")
    assert not found.values.any()
    assert not found.kept.any()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"rewards \(2,\) and groups \(3,\)"):
        group_advantages(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="baseline='median'"):
        group_advantages(torch.zeros(2), torch.zeros(2), baseline="median")
    with pytest.raises(ValueError, match="scale='range'"):
        group_advantages(torch.zeros(2), torch.zeros(2), scale="range")


def test_returns_equal_a_loop_over_later_tokens() -> None:
    segments, mask = Segments.of([3, 0, 4]), torch.tensor([0, 1, 1, 1, 0, 1, 1], dtype=torch.bool)
    torch.manual_seed(0)
    rewards, penalties = torch.randn(3), torch.randn(7)
    found = returns_to_go(rewards, torch.where(mask, penalties, torch.nan), mask, segments)
    expected = torch.zeros(7)
    for number, (start, stop) in enumerate(((0, 3), (3, 3), (3, 7))):
        for t in range(start, stop):
            if mask[t]:
                expected[t] = rewards[number] - sum(penalties[i] for i in range(t, stop) if mask[i])
    torch.testing.assert_close(found, expected)


def test_a_whole_batch_is_whitened() -> None:
    values = torch.tensor([1.0, 2.0, 6.0, 50.0], dtype=torch.float64)
    found = whiten(values, torch.tensor([True, True, True, False]), epsilon=0.0)
    deviation = statistics.stdev([1.0, 2.0, 6.0])
    torch.testing.assert_close(
        found, torch.tensor([-2 / deviation, -1 / deviation, 3 / deviation, 0.0], dtype=torch.float64)
    )
    assert not whiten(values, torch.zeros(4, dtype=torch.bool)).any()


def test_a_batch_on_several_ranks_is_whitened_as_one() -> None:
    torch.manual_seed(0)
    values, mask = torch.randn(12, dtype=torch.float64), torch.rand(12) > 0.3
    known = values[mask]
    for part in (slice(0, 5), slice(5, 12)):
        sums = iter([mask.sum(), known.sum(), (known - known.mean()).square().sum()])
        found = whiten(values[part], mask[part], add_up=lambda own, sums=sums: next(sums))
        torch.testing.assert_close(found, whiten(values, mask)[part])
