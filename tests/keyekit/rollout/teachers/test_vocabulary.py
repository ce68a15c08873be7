"""Vocabularies are compared token by token, and what differs is named."""

from __future__ import annotations

from keyekit.rollout.teachers.vocabulary import Vocabulary


def test_equal_vocabularies_have_no_difference(data) -> None:
    one, other = Vocabulary.of(data.tokenizer), Vocabulary.of(data.tokenizer)
    assert one.difference(other, "x") is None
    assert one.digest == other.digest
    assert one.tokens[data.tokenizer.convert_tokens_to_ids("<|im_end|>")] == "<|im_end|>"


def test_what_differs_is_named() -> None:
    own = Vocabulary(("a", "b", "c"))
    assert own.difference(Vocabulary(("a", "b")), "maths") == (
        "teacher maths has another vocabulary: 2 tokens where the student has 3"
    )
    problem = own.difference(Vocabulary(("a", "x", "c")), "maths")
    assert problem == (
        "teacher maths has another vocabulary: 1 of the first 3 ids mean something else, such as 1 ('b' of the student, 'x' of "
        "the teacher)"
    )
    assert own.digest != Vocabulary(("a", "bc")).digest
