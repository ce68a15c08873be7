from __future__ import annotations

import pytest

from keyekit.registry import load_target, parts
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample
from keyekit.sandbox.execution import available
from keyekit.testing.conformance import checks_for, run_suite


@pytest.mark.parametrize("part", parts("reward"), ids=lambda part: part.name)
def test_reward(part):
    if part.name == "PassedTests" and not available():
        pytest.skip(f"no sandbox here: {available().why_not}")
    cls = load_target(part)
    for check in checks_for("reward"):  # one test, so that processes of a reward serve few times only
        check(cls)


class Broken(AnswerReward):
    """Worth more the later it is asked, and nothing finite for silence."""

    asked = 0

    def outcome(self, sample, answer):
        Broken.asked += 1
        return RewardOutcome(float("nan") if not answer else -float(Broken.asked), "asked")

    @classmethod
    def example(cls):
        return Example(sample=example_sample("?"), right="yes", wrong="no")


def test_the_suite_finds_what_is_wrong():
    messages = {result.name: result.message for result in run_suite(Broken, "reward") if not result.passed}
    assert "the same answers gave different values" in messages["same answers same values"]
    assert "'' is worth {'value': nan}, which is not finite" in messages["anything can be answered"]


def test_the_suite_finds_a_reward_that_prefers_the_wrong():
    class Backwards(Broken):
        """Likes no."""

        def outcome(self, sample, answer):
            return RewardOutcome(float(answer == "no"), "said")

    messages = {result.name: result.message for result in run_suite(Backwards, "reward") if not result.passed}
    assert list(messages) == ["right is worth more than wrong"]
