from __future__ import annotations

import math

import pytest

from keyekit.rewards.base import AnswerReward, Example, Reward, RewardOutcome, example_sample, expected_answer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_and_parts_are_finite(value):
    with pytest.raises(ValueError, match="finite numbers"):
        RewardOutcome(value, "computed")
    with pytest.raises(ValueError, match="share"):
        RewardOutcome(0.0, "computed", {"share": value})


def test_a_dropped_outcome_has_no_value():
    dropped = RewardOutcome.drop("no reply")
    assert dropped.dropped
    assert math.isnan(dropped.value)
    with pytest.raises(ValueError, match="no value"):
        RewardOutcome(1.0, "no reply", dropped=True)


def test_an_outcome_says_why():
    with pytest.raises(ValueError, match="reason"):
        RewardOutcome(1.0, "")


class Lengths(AnswerReward):
    """Letters."""

    def outcome(self, sample, answer):
        return RewardOutcome(float(len(answer)), "counted")

    @classmethod
    def example(cls):
        return Example(sample=example_sample("?"), right="long", wrong="")


class Forgetful(Lengths):
    """Loses one."""

    def outcomes(self, samples, answers):
        return super().outcomes(samples, answers)[1:]


def test_score_is_call_and_checks_numbers():
    sample = example_sample("?")
    assert [outcome.value for outcome in Lengths()([sample] * 2, ["a", "bcd"])] == [1.0, 3.0]
    with pytest.raises(ValueError, match="2 samples but 1 answers"):
        Lengths().score([sample] * 2, ["a"])
    with pytest.raises(ValueError, match="Forgetful gave 1 outcomes for 2 answers"):
        Forgetful().score([sample] * 2, ["a", "b"])


def test_a_sample_without_an_answer_cannot_be_compared():
    with pytest.raises(ValueError, match=r"example:\? has no known answer"):
        expected_answer(example_sample("?"))
    assert issubclass(Lengths, Reward)
