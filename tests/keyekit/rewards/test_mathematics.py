from __future__ import annotations

import pickle

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.mathematics import SymbolicMath


@pytest.fixture(scope="module")
def reward():
    reward = SymbolicMath(seconds=2.0)
    yield reward
    reward.close()


def test_a_batch(reward):
    samples = [example_sample("?", "\\frac{1}{2}")] * 6
    answers = ["\\boxed{0.5}", "<think>2</think><answer>1/3</answer>", "", "?", "9" * 2000, "<answer>\\frac24</answer>"]
    found = [(outcome.value, outcome.reason) for outcome in reward.score(samples, answers)]
    assert found == [
        (1.0, "equal"),
        (0.0, "different"),
        (0.0, "empty"),
        (0.0, "unreadable: no expression"),
        (0.0, "unreadable: too long"),
        (1.0, "equal"),
    ]


def test_what_never_ends_costs_itself_alone(reward):
    answers = ["9^{9^{9^{9}}}!", "2"]
    first, second = SymbolicMath.score(reward, [example_sample("?", "2")] * 2, answers)
    assert (first.value, second.value) == (0.0, 1.0)
    assert first.reason in ("took too long", "crashed the comparison", "different", "unreadable: no expression")


def test_an_expected_answer_that_is_none(reward):
    with pytest.raises(ValueError, match="no mathematical expression"):
        reward.score([example_sample("?", "?")], ["3"])


def test_it_can_be_copied_without_its_processes(reward):
    copied = pickle.loads(pickle.dumps(reward))
    assert copied.seconds == 2.0
    assert copied._pool is None


def test_arguments():
    with pytest.raises(ValueError, match="workers >= 1"):
        SymbolicMath(workers=0)
