from __future__ import annotations

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.matching import ChoiceMatch, ExactMatch, WordMatch


def worth(reward, expected: str, answer: str) -> tuple[float, str]:
    outcome = reward.outcome(example_sample("?", expected), answer)
    return outcome.value, outcome.reason


def test_texts():
    assert worth(ExactMatch(), "Dark Red", "<think>blue</think><answer>\ndark  red </answer>") == (1.0, "equal")
    assert worth(ExactMatch(case_sensitive=True), "Red", "red") == (0.0, "different")
    assert worth(ExactMatch(), "red", "<answer> </answer>") == (0.0, "unreadable: empty")


def test_options():
    assert worth(ChoiceMatch("ABCD"), "C", "<answer>(C) a cat</answer>") == (1.0, "right option")
    assert worth(ChoiceMatch("ABCD"), "C", "D") == (0.0, "wrong option")
    assert worth(ChoiceMatch("ABCD"), "C", "A or C") == (0.0, "unreadable: no one option")
    assert worth(ChoiceMatch("AB"), "A", "E") == (0.0, "unreadable: no one option")


def test_words():
    assert worth(WordMatch(), "before", "It is BEFORE.") == (1.0, "right word")
    assert worth(WordMatch(), "before", "afterwards") == (0.0, "unreadable: none of the words")
    assert worth(WordMatch(), "before", "before or after") == (0.0, "unreadable: several of the words")
    same = WordMatch(("before", "after", "at the same time"))
    assert worth(same, "at the same time", "At the  same time!") == (1.0, "right word")


@pytest.mark.parametrize(
    ("reward", "expected"), [(ChoiceMatch("AB"), "C"), (ChoiceMatch(), "AB"), (WordMatch(), "during")]
)
def test_an_expected_answer_that_no_answer_can_match(reward, expected):
    with pytest.raises(ValueError, match="the expected answer"):
        reward.outcome(example_sample("?", expected), "A")


def test_arguments():
    with pytest.raises(ValueError, match="different letters"):
        ChoiceMatch("AA")
    with pytest.raises(ValueError, match="two different words"):
        WordMatch(("yes", "Yes"))
