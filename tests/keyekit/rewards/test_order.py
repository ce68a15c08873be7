from __future__ import annotations

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.order import OrderMatch


def worth(answer: str, partial: bool = False, expected: str = "3, 1, 4, 2"):
    outcome = OrderMatch(partial).outcome(example_sample("?", expected), answer)
    return outcome.value, outcome.reason


@pytest.mark.parametrize(
    "answer", ["3,1,4,2", "3 -> 1 -> 4 -> 2", "3; 1; 4; 2.", "[3, 1, 4, 2]", "3\n1\n4\n2", "3→1→4→2"]
)
def test_ways_to_list(answer):
    assert worth(answer) == (1.0, "right order")


def test_events():
    assert worth("Jump, then  fall", expected="jump -> fall") == (1.0, "right order")


def test_wrong_orders():
    assert worth("1, 3, 4, 2") == (0.0, "wrong order")
    assert worth("1, 3, 4, 2", partial=True) == (pytest.approx(2 * 5 / 6 - 1), "wrong order")
    assert worth("2, 4, 1, 3", partial=True) == (0.0, "wrong order")


@pytest.mark.parametrize("answer", ["", "3, 1, 4", "3, 1, 4, 4", "3, 1, 4, 2, 5", "3142"])
def test_other_things(answer):
    assert worth(answer, partial=True) == (0.0, "unreadable: not the same things")


@pytest.mark.parametrize("expected", ["1", "1, 1"])
def test_an_expected_answer_that_is_no_order(expected):
    with pytest.raises(ValueError, match="no order"):
        worth("1", expected=expected)
