from __future__ import annotations

import pytest

from keyekit.metrics.choices import extract_choice, extract_choice_as_released


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        (" c", None),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. A dog runs", "B"),
        ("D\nbecause of A", "D"),
        ("**C**", "C"),
        ("The answer is D.", "D"),
        ("Final Answer: B.", "B"),
        ("Answer: (H)", "H"),
        ("The correct option is **E**", "E"),
        ("the answer is A. No, the answer is B", "B"),
        ("Based on the video, it must be G", "G"),
        ("A man walks a dog, so C", "C"),
        ("It may be C, or B", None),
        ("I saw A and B", None),
        ("A or B", None),
        ("it is C because of A man", "C"),
        ("A man walks a dog", None),
        ("Because", None),
        ("Z", None),
        ("", None),
    ],
)
def test_one_letter_is_read_or_none(text, letter):
    assert extract_choice(text, "ABCDEFGH") == letter


def test_only_letters_of_options_count():
    assert extract_choice("E", "ABCD") is None
    assert extract_choice("E", "ABCDE") == "E"


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("C", "C"),
        ("Based on the video: G", "B"),
        ("Final Answer: D.", "D"),
        ("Answer: C", "C"),
        ("Best option: C", "C"),
        ("none of them", None),
        ("", None),
    ],
)
def test_the_official_scripts_take_the_first_capital(text, letter):
    assert extract_choice_as_released(text, "ABCDEFGH") == letter
