from __future__ import annotations

import math

import pytest

from keyekit.cli.pipeline.expectation import Expectation


@pytest.mark.parametrize(
    ("text", "before", "after", "holds"),
    [
        ("after >= 0.8", 0, 0.8, True),
        ("after > 0.8", 0, 0.8, False),
        ("after >= before - 0.02", 0.9, 0.879, False),
        ("after >= before - 0.02", 0.9, 0.881, True),
        ("after < 0.5 * before", 2, 0.9, True),
        ("before <= 0.5 <= after", 0.4, 0.6, True),
        ("before <= 0.5 <= after", 0.6, 0.7, False),
        ("after == -1", 0, -1, True),
        ("after >= before", 0.1, math.nan, False),
        ("after >= 2e-1", math.nan, 0.2, True),
    ],
)
def test_comparisons(text, before, after, holds):
    assert Expectation(text).holds(before=before, after=after) is holds


def test_whether_it_needs_a_value_before():
    assert Expectation("after >= before").needs_before
    assert not Expectation("after >= 0.5").needs_before


@pytest.mark.parametrize(
    "text",
    [
        "after",
        "after >= other",
        "after in 3",
        "after >= f(3)",
        "after >=",
        "after >= 'x'",
        "after / 2 > 1",
        "",
        "True > 0",
    ],
)
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="such as 'after >= before"):
        Expectation(text)
