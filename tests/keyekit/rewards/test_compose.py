from __future__ import annotations

import pytest

from keyekit.rewards.base import Example, Reward, RewardOutcome, example_sample
from keyekit.rewards.by_task import ByTask
from keyekit.rewards.compose import Fallback, Gate, WeightedSum
from keyekit.rewards.correction import SelfCorrection

SAMPLE = example_sample("?")


class Table(Reward):
    """Values by answer; what is not in it is dropped."""

    def __init__(self, **values):
        self.values, self.asked = values, []

    def outcomes(self, samples, answers):
        self.asked += answers
        return [
            RewardOutcome(self.values[answer], answer, {"part": self.values[answer]})
            if answer in self.values
            else RewardOutcome.drop("unknown")
            for answer in answers
        ]

    @classmethod
    def example(cls):
        return Example(sample=SAMPLE, right="a", wrong="b")


def scored(reward: Reward, *answers: str) -> list[RewardOutcome]:
    return reward.score([SAMPLE] * len(answers), answers)


def test_a_weighted_sum_with_its_parts():
    reward = WeightedSum([Table(a=1.0), Table(a=0.5, b=1.0)], [2.0, -1.0], ["first", "second"])
    (found,) = scored(reward, "a")
    assert found.value == 1.5
    assert found.parts == {"first": 1.0, "first/part": 1.0, "second": 0.5, "second/part": 0.5}
    assert found.reason == "first: a, second: a"
    assert scored(reward, "b")[0].dropped


def test_equal_classes_get_numbers():
    (found,) = scored(WeightedSum([Table(a=1.0), Table(a=3.0)]), "a")
    assert (found.value, found.parts["Table_0"], found.parts["Table_1"]) == (4.0, 1.0, 3.0)


@pytest.mark.parametrize("arguments", [([],), ([Table()], [1.0, 2.0]), ([Table(), Table()], None, ["same", "same"])])
def test_a_sum_that_does_not_fit_together(arguments):
    with pytest.raises(ValueError, match="a weight and a name"):
        WeightedSum(*arguments)


def test_a_gate_multiplies_and_asks_only_behind_open_gates():
    behind = Table(a=2.0, b=2.0)
    gate = Gate(Table(a=0.5, b=0.0, c=1.0), behind)
    open_, closed, lost_behind, lost_before = scored(gate, "a", "b", "c", "d")
    assert (open_.value, open_.parts["gate"], open_.parts["reward"]) == (1.0, 0.5, 2.0)
    assert (closed.value, closed.reason) == (0.0, "gate: b")
    assert lost_behind.dropped
    assert lost_before.dropped
    assert behind.asked == ["a", "c"]


class Reading(Table):
    """The same; answers of two letters cannot be read."""

    def outcomes(self, samples, answers):
        found = super().outcomes(samples, answers)
        return [
            RewardOutcome.cannot_read("two letters") if len(a) == 2 else o for a, o in zip(answers, found, strict=True)
        ]


@pytest.mark.parametrize(
    "reward",
    [
        Reading(a=1.0),
        WeightedSum([Table(a=1.0, bb=1.0), Reading(a=1.0)]),
        Gate(Reading(a=1.0), Table(a=1.0)),
        Gate(Table(a=1.0, bb=1.0), Reading(a=1.0)),
        Fallback(Table(a=0.0), Reading(a=1.0)),
        ByTask({"*": Reading(a=1.0)}),
        SelfCorrection(Reading(a=1.0)),
    ],
    ids=lambda reward: type(reward).__name__,
)
def test_that_an_answer_cannot_be_read_is_carried_on(reward):
    sample = example_sample("?", meta={"first_answer": "a"})
    read, unread = reward.score([sample] * 2, ["a", "bb"])
    assert (read.unreadable, unread.unreadable) == (False, True)
    assert unread.value <= 1.0


def test_a_first_opinion_that_could_not_read_is_forgotten():
    (found,) = scored(Fallback(Reading(), Table(bb=1.0)), "bb")
    assert (found.value, found.unreadable) == (1.0, False)


def test_thymes_reward_counts_consistency_for_right_results_only():
    """Result + 0.5 consistency + 0.5 format (8B sheet 5.6)."""
    result, consistent, form = Table(a=1.0, b=0.0), Table(a=1.0, b=1.0), Table(a=1.0, b=1.0)
    reward = WeightedSum([result, Gate(result, consistent), form], [1.0, 0.5, 0.5])
    assert [outcome.value for outcome in scored(reward, "a", "b")] == [2.0, 0.5]


def test_a_second_opinion_where_the_first_gives_nothing():
    second = Table(b=0.7, c=0.2, d=0.1)
    found = scored(Fallback(Table(a=1.0, b=0.0, c=-1.0), second), "a", "b", "c", "d")
    assert [outcome.value for outcome in found] == [1.0, 0.7, 0.2, 0.1]
    assert second.asked == ["b", "c", "d"]
