from __future__ import annotations

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.counting import Counting


@pytest.mark.parametrize(
    ("answer", "value", "reason"),
    [
        ("3", 1.0, "right count"),
        ("<think>4? 5?</think><answer>There are 3.</answer>", 1.0, "right count"),
        ("03 circles", 1.0, "right count"),
        ("3, yes, 3", 1.0, "right count"),
        ("4", 0.0, "wrong count"),
        ("-3", 0.0, "wrong count"),
        ("3 or 4", 0.0, "unreadable: several integers"),
        ("3.5", 0.0, "unreadable: no integer"),
        ("3,000", 0.0, "unreadable: no integer"),
        ("x3", 0.0, "unreadable: no integer"),
        ("three", 0.0, "unreadable: no integer"),
        ("", 0.0, "unreadable: no integer"),
    ],
)
def test_counts(answer, value, reason):
    outcome = Counting().outcome(example_sample("?", " 3 "), answer)
    assert (outcome.value, outcome.reason) == (value, reason)


def test_an_expected_answer_that_is_no_integer():
    with pytest.raises(ValueError, match="'three' is no integer"):
        Counting().outcome(example_sample("?", "three"), "3")
