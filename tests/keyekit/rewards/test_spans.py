from __future__ import annotations

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.spans import TemporalOverlap


@pytest.mark.parametrize(
    ("answer", "value", "reason"),
    [
        ("2.0 - 5.0", 1.0, "overlaps"),
        ("<think>1 - 2</think><answer>from 3 to 6 s</answer>", 0.5, "overlaps"),
        ("00:03 until 00:06", 0.5, "overlaps"),
        ("6 - 9", 0.0, "elsewhere"),
        ("5 - 2", 0.0, "ends before it begins"),
        ("3 - 3", 0.0, "ends before it begins"),
        ("at 3 s", 0.0, "unreadable: no two times"),
    ],
)
def test_overlap(answer, value, reason):
    outcome = TemporalOverlap().outcome(example_sample("?", "2.0 - 5.0"), answer)
    assert (outcome.value, outcome.reason) == (value, reason)


@pytest.mark.parametrize("expected", ["5 - 2", "now"])
def test_an_expected_answer_that_is_no_span(expected):
    with pytest.raises(ValueError, match="no span of time"):
        TemporalOverlap().outcome(example_sample("?", expected), "1 - 2")
