from __future__ import annotations

import pytest

from keyekit.rewards.equivalence import compare


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ("1/2", "0.5"),
        ("\\frac{1}{2}", "\\dfrac{2}{4}"),
        ("x^2+2x+1", "(x+1)^2"),
        ("\\{1, 2\\}", "\\{2, 1\\}"),
        ("5", "The answer is 5."),
        ("x=3", "3"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("1,000", "1000"),
    ],
)
def test_equal(expected, given):
    assert compare((expected, given)) == "equal"


@pytest.mark.parametrize(("expected", "given"), [("3", "4"), ("x^2", "x^3"), ("1/2", "1/3"), ("10", "banana")])
def test_different(expected, given):
    assert compare((expected, given)) == "different"


def test_unreadable():
    assert compare(("3", "?")) == "unreadable"
    assert compare(("?", "3")) == "nothing expected"
