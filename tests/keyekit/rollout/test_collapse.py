"""Where an answer begins to repeat itself, against a search letter by letter."""

from __future__ import annotations

import random

import pytest

from keyekit.rollout.collapse import CollapseDetector


def by_hand(answer: list[int], detector: CollapseDetector) -> int:
    """The first token from which on a block before it is repeated long enough."""
    for start in range(1, len(answer)):
        for block in range(1, min(detector.longest_block, start) + 1):
            end = start
            while end < len(answer) and answer[end] == answer[end - block]:
                end += 1
            if end - start >= max(detector.tokens, detector.repeats * block):
                return start
    return -1


def test_it_finds_what_a_search_finds() -> None:
    source = random.Random(0)
    found = 0
    for _ in range(300):
        detector = CollapseDetector(
            longest_block=source.randint(1, 6), repeats=source.randint(1, 3), tokens=source.randint(1, 9)
        )
        answer = [source.randrange(4) for _ in range(source.randint(0, 12))]
        block = [source.randrange(4) for _ in range(source.randint(1, 5))]
        answer += block * source.randint(1, 6) + [source.randrange(4) for _ in range(source.randint(0, 6))]
        point = detector.point(answer)
        assert point == by_hand(answer, detector)
        assert detector.collapsed(answer) == (point >= 0)
        found += point >= 0
    assert 50 < found < 280


def test_a_list_or_a_long_text_is_no_collapse() -> None:
    detector = CollapseDetector()
    assert detector.point(list(range(500))) == -1
    assert detector.point([1, 2, 3] * 5) == -1  # too short
    assert detector.point(list(range(20)) + [7] * 40) == 21
    assert detector.point([]) == detector.point([1]) == -1


@pytest.mark.parametrize("name", ["longest_block", "repeats", "tokens"])
def test_numbers_are_positive(name) -> None:
    with pytest.raises(ValueError, match=f"{name}=0: give at least 1"):
        CollapseDetector(**{name: 0})
