from __future__ import annotations

import random

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.penalties import LengthPenalty, RepetitionPenalty, repeated_share

SAMPLE = example_sample("?")


def by_marking(text: str, window: int) -> float:
    best = 0
    for piece in {text[place : place + window] for place in range(len(text) - window + 1)}:
        starts = [place for place in range(len(text)) if text.startswith(piece, place)]
        if len(starts) > 1:
            best = max(best, len({place for start in starts for place in range(start, start + window)}))
    return best / max(len(text), 1)


def test_the_share_equals_marking_letters():
    generator = random.Random(0)
    for _ in range(300):
        text = "".join(generator.choices("ab", k=generator.randrange(15)))
        window = generator.randrange(1, 5)
        assert repeated_share(text, window) == pytest.approx(by_marking(text, window)), (text, window)


def test_repetition():
    reward = RepetitionPenalty(substring=10, penalty=0.7)
    assert reward.outcome(SAMPLE, "The ball is red and lies on the left, the cube is blue.").value == 0.0
    assert reward.outcome(SAMPLE, "I see. " + "and then again " * 10).value == -0.7
    assert reward.outcome(SAMPLE, "short").value == 0.0
    assert reward.outcome(SAMPLE, "").value == 0.0


def test_half_of_the_text_is_not_yet_repetitive():
    text = "abcde" * 2 + "0123456789"
    assert repeated_share(text, 5) == 0.5
    assert RepetitionPenalty(substring=5).outcome(SAMPLE, text).value == 0.0
    assert RepetitionPenalty(substring=5).outcome(SAMPLE, text[:-1]).value == -1.0


@pytest.mark.parametrize(("length", "value"), [(0, 0.0), (80, 0.0), (81, -0.1), (90, -1.0), (100, -2.0), (500, -2.0)])
def test_length_falls_in_a_straight_line(length, value):
    outcome = LengthPenalty(longest=100, slope=20, penalty=2.0).outcome(SAMPLE, "a" * length)
    assert outcome.value == pytest.approx(value)


@pytest.mark.parametrize("arguments", [{"substring": 0}, {"share": 1.0}, {"penalty": -1}])
def test_arguments_of_repetition(arguments):
    with pytest.raises(ValueError, match="substring >= 1"):
        RepetitionPenalty(**arguments)


def test_arguments_of_length():
    with pytest.raises(ValueError, match="slope <= longest"):
        LengthPenalty(longest=10, slope=20)
