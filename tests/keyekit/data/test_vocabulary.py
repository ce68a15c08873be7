"""Vocabularies are compared token by token, and what differs is named."""

from __future__ import annotations

from keyekit.data.tokenizer import train_tokenizer
from keyekit.data.vocabulary import Vocabulary


def test_equal_vocabularies_have_no_difference(tmp_path) -> None:
    tokenizer = train_tokenizer(["a red circle"] * 9, tmp_path, vocab_size=300)
    one, other = Vocabulary.of(tokenizer), Vocabulary.of(tokenizer)
    assert one.difference(other, "x") is None
    assert one.digest == other.digest
    assert one.tokens[tokenizer.convert_tokens_to_ids("<|im_end|>")] == "<|im_end|>"


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


def test_only_ids_that_both_have_can_mean_something_else() -> None:
    own = Vocabulary(("a", "b", "", "d"))
    assert own.other_meanings(own) == own.other_meanings(Vocabulary(("a", "b", "c", "d", "e"))) == []
    assert own.other_meanings(Vocabulary(("a", "c", "b", "e"))) == [1, 3]
