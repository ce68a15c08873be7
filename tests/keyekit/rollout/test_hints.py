from __future__ import annotations

import pytest

from keyekit.data.sample import ContentItem, Message, Sample
from keyekit.rollout.hints import Hints


def asked(thought: str | None = "3+4=7 7+5=12", answer: str = "12", **meta) -> Sample:
    def turn(role: str, text: str, thought: str | None = None) -> Message:
        return Message(role=role, content=(ContentItem(kind="text", text=text),), thought=thought)

    return Sample(id="a", task="sum", messages=(turn("user", "Sum?"), turn("assistant", answer, thought)), meta=meta)


def test_hints_tell_a_growing_part_of_the_solution() -> None:
    hints, sample = Hints(shares=(0.1, 0.7, 1.0)), asked()
    told = [hints.sample(sample, level).question for level in range(hints.levels(sample))]
    assert told == ["Sum?\nHint: 3+4=7", "Sum?\nHint: 3+4=7 7+5=12", "Sum?\nHint: 3+4=7 7+5=12 12"]
    hinted = hints.sample(sample, 1)
    assert (hinted.id, hinted.meta) == ("a#hint1", {"hint": 1, "origin": "a"})
    assert hinted.messages[-1] == sample.messages[-1]


def test_hints_of_the_sample_come_before_those_of_the_solution() -> None:
    hints, sample = Hints(wording=" ({})"), asked(hints=["add", "add twice"])
    assert hints.levels(sample) == 2
    assert hints.sample(sample, 1).question == "Sum? (add twice)"


def test_without_a_solution_there_is_nothing_to_tell() -> None:
    sample = Sample(id="a", task="sum", messages=asked().messages[:1])
    assert Hints().levels(sample) == 0
    with pytest.raises(ValueError, match="has 0 hints"):
        Hints().sample(sample, 0)


@pytest.mark.parametrize("shares", [(), (0.5, 0.5), (0.0, 1.0), (0.5, 1.5)])
def test_shares_have_to_rise(shares) -> None:
    with pytest.raises(ValueError, match="have to rise"):
        Hints(shares=shares)


def test_a_wording_needs_a_place_for_the_hint() -> None:
    with pytest.raises(ValueError, match="where the hint stands"):
        Hints(wording="Think harder.")
