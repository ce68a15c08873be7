from __future__ import annotations

import pytest

from keyekit.data.sample import Sample
from keyekit.evaluation.benchmark import question
from keyekit.evaluation.multiple_choice import NO_OPTION, judge_choice, letters_of, listed


def sample(answer: str | None) -> Sample:
    return Sample(id="a", task="t", messages=question("?"), answer=answer)


def test_options_have_letters():
    assert listed(["x", "y", "z"]) == "A. x\nB. y\nC. z"
    assert letters_of(8) == "ABCDEFGH"


@pytest.mark.parametrize(
    ("text", "score", "letter"),
    [
        ("B", 1.0, "B"),
        ("C", 0.0, "C"),
        ("<think>A or C?</think><answer>\\boxed{B}</answer>", 1.0, "B"),  # 8B sheet 2.5 comes first
        ("<analysis>Easy. /no_think</analysis>B", 1.0, "B"),
        ("no idea", 0.0, None),
    ],
)
def test_the_letter_after_all_thoughts_counts(text, score, letter):
    verdict = judge_choice(sample("B"), text, "ABCD", as_released=False)
    assert (verdict.score, verdict.extracted) == (score, letter)
    assert verdict.problem == (NO_OPTION if letter is None else None)


def test_without_a_published_answer_there_is_no_score():
    assert judge_choice(sample(None), "B", "ABCD", as_released=False).score is None


def test_the_official_scripts_take_a_capital_within_a_word():
    text = "Because of the hat it is C"
    assert judge_choice(sample("C"), text, "ABCD", as_released=False).score == 1
    assert judge_choice(sample("C"), text, "ABCD", as_released=True).extracted == "B"
