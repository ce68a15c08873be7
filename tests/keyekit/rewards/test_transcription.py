from __future__ import annotations

import random

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.transcription import Transcription, edit_distance


def by_table(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (one != other))
    return row[-1]


def test_edit_distance_equals_the_table():
    generator = random.Random(0)
    for _ in range(400):
        first, second = ("".join(generator.choices("abc", k=generator.randrange(12))) for _ in range(2))
        assert edit_distance(first, second) == by_table(first, second), (first, second)
    long = "".join(generator.choices("abcdefgh ", k=300))
    assert edit_distance(long, long[40:] + "xyz") == by_table(long, long[40:] + "xyz")


def worth(answer: str, expected: str = "Exit 24!", **arguments) -> float:
    return Transcription(**arguments).outcome(example_sample("?", expected), answer).value


def test_case_space_punctuation_and_width_do_not_matter():
    assert worth("exit, 24", exact=True) == 1.0
    assert worth("ＥＸＩＴ２４", exact=True) == 1.0
    assert worth("exit 25", exact=True) == 0.0
    assert worth("a+b", "a-b") == pytest.approx(1 - 1 / 3)  # a plus is no punctuation, a dash is


def test_the_share_of_letters():
    assert worth("exit 25") == pytest.approx(1 - 1 / 6)
    assert worth("exit 25", threshold=0.9) == 0.0
    assert worth("exit 24 and a lot more") == pytest.approx(1 - 11 / 17)
    assert worth("...") == 0.0


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="neither letter nor digit"):
        worth("a", expected="?!")
    with pytest.raises(ValueError, match="threshold=2"):
        Transcription(threshold=2)
