"""Every kind of constraint, kept and broken."""

from __future__ import annotations

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.instructions import CONSTRAINTS, InstructionFollowing

CASES = [
    ("words", 2, "two words", "two words more"),
    ("min_words", 3, "one two three", "one two"),
    ("max_words", 1, "Red.", "It is red."),
    ("max_characters", 3, "red", "blue"),
    ("sentences", 2, "It is red. It moves!", "It is red, and version 2.0 moves."),
    ("paragraphs", 2, "One.\n\nTwo.", "One.\nTwo."),
    ("bullets", 2, "- one\n* two", "- one"),
    ("starts_with", "Sure", "sure, it is red", "it is red, sure"),
    ("ends_with", ".", "It is red.", "It is red"),
    ("contains", ["red", "ball"], "A red Ball.", "A red cube."),
    ("excludes", "sorry", "No.", "Sorry, no."),
    ("matches", r"^\d+$", "42", "42 balls"),
    ("case", "upper", "RED", "Red"),
    ("case", "lower", "red", "Red"),
    ("json", ["color"], '```json\n{"color": "red"}\n```', '{"shape": "ball"}'),
    ("json", True, "[1, 2]", "[1, 2"),
]


@pytest.mark.parametrize(("kind", "value", "kept", "broken"), CASES)
def test_a_constraint_is_kept_or_broken(kind, value, kept, broken):
    sample = example_sample("?", meta={"constraints": {kind: value}})
    good, bad = InstructionFollowing().score([sample] * 2, [f"<think>Hm. hm</think><answer>{kept}</answer>", broken])
    assert (good.value, good.reason, bad.value, bad.reason) == (1.0, "follows", 0.0, f"does not follow: {kind}")


def test_every_kind_is_tried():
    assert {case[0] for case in CASES} == set(CONSTRAINTS)


def test_one_broken_constraint_counts_as_all_unless_shares_are_wanted():
    sample = example_sample("?", meta={"constraints": {"max_words": 3, "starts_with": "It"}})
    assert InstructionFollowing().score([sample], ["Red it is"])[0].value == 0.0
    partial = InstructionFollowing(partial=True).score([sample], ["Red it is"])[0]
    assert (partial.value, partial.parts) == (0.5, {"max_words": 1.0, "starts_with": 0.0})
    assert InstructionFollowing(partial=True).score([sample], [""])[0].value == 0.0


def test_a_question_without_constraints_is_bad_data():
    with pytest.raises(ValueError, match="names no constraint"):
        InstructionFollowing().score([example_sample("?")], ["red"])
    with pytest.raises(ValueError, match=r"no constraint 'max_word'.*max_words"):
        InstructionFollowing().score([example_sample("?", meta={"constraints": {"max_word": 1}})], ["red"])
