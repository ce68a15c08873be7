"""What benchmarks of multiple-choice questions share: letters of options, and the verdict on a letter."""

from __future__ import annotations

import string
from collections.abc import Sequence

from keyekit.data.sample import Sample
from keyekit.evaluation.benchmark import Verdict
from keyekit.metrics.choices import extract_choice, extract_choice_as_released
from keyekit.metrics.extraction import extract_answer

__all__ = ["NO_OPTION", "judge_choice", "letters_of", "listed"]

NO_OPTION = "no option named"
"""Problem of an answer in which no letter was found."""


def letters_of(count: int) -> str:
    """Letters of so many options."""
    return string.ascii_uppercase[:count]


def listed(options: Sequence[str]) -> str:
    """Options with their letters, one a line.

    Example:
        >>> print(listed(["red", "blue"]))
        A. red
        B. blue
    """
    return "\n".join(f"{letter}. {text}" for letter, text in zip(letters_of(len(options)), options, strict=True))


def judge_choice(sample: Sample, text: str, letters: str, as_released: bool) -> Verdict:
    """Compare the letter in a response with the right one.

    Args:
        sample: The question; its answer is a letter, or ``None`` where that is not published.
        text: All that the model said.
        letters: Letters of the options.
        as_released: Read letters as the official scripts do.
    """
    extract = extract_choice_as_released if as_released else extract_choice
    letter = extract(extract_answer(text), letters)
    score = None if sample.answer is None else float(letter == sample.answer)
    return Verdict(score=score, extracted=letter, problem=NO_OPTION if letter is None else None)
