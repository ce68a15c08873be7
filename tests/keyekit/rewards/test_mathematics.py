from __future__ import annotations

import pickle

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.mathematics import SymbolicMath, is_words


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
        (0.0, "unreadable: empty"),
        (0.0, "unreadable: no expression"),
        (0.0, "unreadable: too long"),
        (1.0, "equal"),
    ]


def test_what_never_ends_costs_itself_alone(reward):
    answers = ["9^{9^{9^{9}}}!", "2"]
    first, second = SymbolicMath.score(reward, [example_sample("?", "2")] * 2, answers)
    assert (first.value, second.value) == (0.0, 1.0)
    assert first.reason in ("took too long", "crashed the comparison", "different", "unreadable: no expression")


def test_an_expected_answer_that_is_none_costs_its_sample_alone(reward, caplog):
    samples = [example_sample("one", "?"), example_sample("two", "3"), example_sample("one", "?")]
    outcomes = reward.score(samples, ["3", "3", "4"])
    assert [outcome.dropped for outcome in outcomes] == [True, False, True]
    assert outcomes[1].value == 1.0
    assert caplog.messages == ["sample example:one: the expected answer '?' is no expression: its answers are dropped"]


@pytest.mark.parametrize(
    ("expected", "given", "value"),
    [
        ("left", "felt", 0.0),
        ("left", "<answer>Left.</answer>", 1.0),
        ("on", "no", 0.0),
        ("\\text{no}", "\\boxed{\\text{no}}", 1.0),
        ("\\text{no}", "on", 0.0),
        ("turn left", "turn felt", 0.0),
        ("time/distance", "emit/distance", 0.0),
        ("左", "左", 1.0),
        ("左", "右", 0.0),
        ("左", "3", 0.0),
        ("left", "3", 0.0),
        ("3", "left", 0.0),
        ("3", "左", 0.0),
        ("F=ma", "F=am", 1.0),
        ("x", "x", 1.0),
        ("\\sin x", "\\sin(x)", 1.0),
    ],
)
def test_words_are_compared_as_words(reward, expected, given, value):
    assert reward.score([example_sample("?", expected)], [given])[0].value == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("T-shirt", True),
        ("$\\text{left}$", True),
        ("向左", True),
        ("speed=distance/time", True),
        ("sin x", False),
        ("α", False),
        ("x+y", False),
        ("3个", False),
        ("", False),
        ("?", False),
    ],
)
def test_what_words_are(text, words):
    assert is_words(text) == words


def test_it_can_be_copied_without_its_processes(reward):
    copied = pickle.loads(pickle.dumps(reward))
    assert copied.seconds == 2.0
    assert copied._pool is None


def test_arguments():
    with pytest.raises(ValueError, match="workers >= 1"):
        SymbolicMath(workers=0)
