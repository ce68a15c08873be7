"""Every kind of question is looked at by its own reward."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyekit.rewards.base import RewardOutcome, example_sample
from keyekit.rewards.by_task import ByTask
from keyekit.rewards.counting import Counting
from keyekit.rewards.matching import ExactMatch


def sample(task: str, answer: str):
    return replace(example_sample("?", answer), task=task)


def test_the_task_decides_and_the_order_of_samples_stays():
    reward = ByTask({"count": Counting(), "color*": ExactMatch()})
    samples = [sample("color_one", "red"), sample("count", "3"), sample("color", "blue")]
    outcomes = reward.score(samples, ["It is red", "There are 3.", "blue"])
    assert [outcome.value for outcome in outcomes] == [0.0, 1.0, 1.0]
    assert [outcome.parts for outcome in outcomes] == [{"color_one": 0.0}, {"count": 1.0}, {"color": 1.0}]


def test_the_first_pattern_that_matches_counts():
    reward = ByTask({"count_*": ExactMatch(), "*": Counting()}, names=False)
    outcomes = reward.score([sample("count_a", "3"), sample("count", "3")], ["so 3", "so 3"])
    assert [outcome.value for outcome in outcomes] == [0.0, 1.0]
    assert outcomes[1].parts == {}


def test_what_is_dropped_stays_dropped():
    class Silent(Counting):
        def outcome(self, sample, answer):
            return RewardOutcome.drop("no reply")

    (outcome,) = ByTask({"*": Silent()}).score([sample("a", "3")], ["3"])
    assert outcome.dropped


def test_a_task_without_a_reward_is_an_error():
    with pytest.raises(ValueError, match=r"no reward for the task 'order'; there are count"):
        ByTask({"count": Counting()}).score([sample("order", "3")], ["3"])
    with pytest.raises(ValueError, match="name at least one task"):
        ByTask({})
