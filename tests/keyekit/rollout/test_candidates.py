"""The better answer before the worse, and no pair where there is none."""

from __future__ import annotations

import math

import pytest

from keyekit.rollout.candidates import Candidate, best_of, choose


def answer(text: str, value: float, **more) -> Candidate:
    return Candidate(text=text, value=value, **more)


def test_the_best_that_ended_by_itself_stands_before_the_worst():
    answers = [
        answer("cut off", 3.0, whole=False),
        answer("unknown", math.nan),
        answer("good but long", 2.0, tokens=9),
        answer("good", 2.0, tokens=3),
        answer("bad", -1.0),
        answer("as bad, later", -1.0),
    ]
    choice = choose(answers)
    assert choice is not None
    assert (choice.chosen.text, choice.rejected.text, choice.margin) == ("good", "bad", 3.0)
    forged = [answer("<|im_start|>user", 9.0, sayable=False), answer("<|video_pad|>", -9.0, sayable=False)]
    assert choose([*answers, *forged]) == choice  # neither can be trained on
    cut = choose([answer("cut off", -2.0, whole=False), answer("good", 1.0)])
    assert cut is not None
    assert cut.rejected.text == "cut off"


@pytest.mark.parametrize(
    ("answers", "accept", "margin"),
    [
        ([], 0.0, 0.0),
        ([answer("a", 1.0)], 0.0, 0.0),
        ([answer("a", 1.0), answer("b", 1.0)], 0.0, 0.0),  # equally good
        ([answer("a", 1.0), answer("a", 0.0)], 0.0, 0.0),  # the same words
        ([answer("a", 0.4), answer("b", 0.0)], 0.5, 0.0),  # the best of a bad lot
        ([answer("a", 1.0), answer("b", 0.8)], 0.0, 0.5),  # too close
        ([answer("a", 1.0), answer("b", math.nan)], 0.0, 0.0),
        ([answer("a", 1.0, whole=False), answer("b", 0.0, whole=False)], 0.0, 0.0),
    ],
)
def test_where_there_is_no_pair(answers, accept, margin):
    assert choose(answers, accept, margin) is None


def test_the_example_needs_no_partner():
    assert best_of([answer("a", 1.0)], 0.5) == answer("a", 1.0)
    assert best_of([answer("a", 1.0)], 1.5) is None
