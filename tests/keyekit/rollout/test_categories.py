"""Categories of tokens follow the text they make."""

from __future__ import annotations

import pytest

from keyekit.rollout.categories import TokenCategories

PIECES = ["<ans", "wer>", "The ", "red ", "3", "4", "</answer>", ""]


def decode(tokens: list[int]) -> str:
    return "".join(PIECES[token] for token in tokens)


def test_a_token_belongs_to_the_first_pattern_that_touches_it() -> None:
    categories = TokenCategories({"formatting": r"</?answer>", "numbers": r"\d+", "sight": r"red|\d"}, decode)
    assert categories.names == ("formatting", "numbers", "sight")
    assert categories.of([0, 1, 2, 3, 4, 5, 6, 7]) == [0, 0, -1, 2, 1, 1, 0, -1]
    assert categories.of([]) == []


def test_a_broken_pattern_is_named() -> None:
    with pytest.raises(ValueError, match="the pattern of category 'sight' is no regular expression"):
        TokenCategories({"sight": "("}, decode)
