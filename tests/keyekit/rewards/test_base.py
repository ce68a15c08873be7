from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest

from keyekit.rewards.base import AnswerReward, Example, Reward, RewardOutcome, example_sample, expected_answer
from keyekit.rewards.compose import Fallback, Gate, WeightedSum
from keyekit.rewards.lost_samples import RewardBroken


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


class Ratios(Lengths):
    """What the answer says, as a number, and over itself as a part."""

    def outcome(self, sample, answer):
        number = float(answer)
        return RewardOutcome(number, "computed", {"ratio": number / number if number else math.nan})


@pytest.mark.parametrize("answer", ["nan", "inf", "-inf", "0"])
@pytest.mark.parametrize(
    "reward",
    [Ratios(), WeightedSum([Lengths(), Ratios()]), Gate(Lengths(), Ratios()), Gate(Ratios(), Lengths())],
    ids=["alone", "sum", "behind a gate", "gate"],
)
def test_an_answer_whose_reward_is_no_finite_number_is_dropped_and_told(reward, answer, caplog):
    samples = [replace(example_sample("?"), id=name) for name in "abc"]
    first, second, third = reward.score(samples, ["1", answer, "2"])
    assert not first.dropped
    assert second.dropped
    assert math.isnan(second.value)
    assert not second.parts
    assert not third.dropped
    (told,) = caplog.messages  # by the reward that computed it alone
    assert "Ratios computed" in told
    assert "for sample b (computed)" in told
    assert "1 of these 3" in told


def test_a_sum_of_finite_numbers_may_be_none(caplog):
    (found,) = WeightedSum([Ratios()], [1e308]).score([example_sample("?")], ["10"])
    assert found.dropped
    assert "WeightedSum computed {'value': inf}" in caplog.text


def test_a_second_opinion_is_had_where_the_first_is_no_number():
    (found,) = Fallback(Ratios(), Lengths()).score([example_sample("?")], ["nan"])
    assert found.value == 3.0


def test_too_many_rewards_that_are_no_numbers_stop_the_run():
    reward, sample = Ratios(), example_sample("?")
    reward.score([sample] * 40, ["1"] * 32 + ["nan"] * 8)
    again = pickle.loads(pickle.dumps(reward))
    for one in (reward, again):
        with pytest.raises(RewardBroken, match=r"Ratios computed no finite number for 22% of the last 41 answers"):
            one.score([sample], ["inf"])
    patient = Ratios()
    patient.max_broken_share = 1.0
    assert all(outcome.dropped for outcome in patient.score([sample] * 99, ["nan"] * 99))


def test_a_sample_without_an_answer_cannot_be_compared():
    with pytest.raises(ValueError, match=r"example:\? has no known answer"):
        expected_answer(example_sample("?"))
    assert issubclass(Lengths, Reward)
