"""Answers that are right or wrong by comparison: equal texts and letters of options."""

from __future__ import annotations

from keyekit.data.sample import Sample
from keyekit.metrics.choices import extract_choice
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample, expected_answer

__all__ = ["ChoiceMatch", "ExactMatch", "WordMatch"]


class ExactMatch(AnswerReward):
    """1 if the final answer is the expected one, white space and, unless told otherwise, case aside.

    Args:
        case_sensitive: Whether case matters.
    """

    def __init__(self, case_sensitive: bool = False) -> None:
        self.case_sensitive = case_sensitive

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`."""
        found, wanted = self._plain(extract_answer(answer)), self._plain(expected_answer(sample))
        if not found:
            return RewardOutcome.cannot_read("empty")
        return RewardOutcome(1.0, "equal") if found == wanted else RewardOutcome(0.0, "different")

    def _plain(self, text: str) -> str:
        text = " ".join(text.split())
        return text if self.case_sensitive else text.casefold()

    @classmethod
    def example(cls) -> Example:
        """A colour."""
        return Example(sample=example_sample("Which colour?", "red"), right="<answer>Red</answer>", wrong="green")


class ChoiceMatch(AnswerReward):
    """1 if the answer names the option that is right, 0 if another, several or none.

    Args:
        letters: Letters of the options.
    """

    def __init__(self, letters: str = "ABCDEFGH") -> None:
        if not letters.isalpha() or len(set(letters)) != len(letters):
            raise ValueError(f"letters={letters!r}: expected different letters, such as 'ABCD'")
        self.letters = letters

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`.

        Raises:
            ValueError: If the expected answer is no letter of the options.
        """
        wanted = expected_answer(sample).strip()
        if wanted not in self.letters or len(wanted) != 1:
            raise ValueError(f"sample {sample.id}: the expected answer {wanted!r} is none of {self.letters}")
        found = extract_choice(extract_answer(answer), self.letters)
        if found is None:
            return RewardOutcome.cannot_read("no one option")
        return RewardOutcome(1.0, "right option") if found == wanted else RewardOutcome(0.0, "wrong option")

    @classmethod
    def example(cls) -> Example:
        """A question with options."""
        return Example(sample=example_sample("A. dog B. cat", "B"), right="The answer is B.", wrong="A")


class WordMatch(AnswerReward):
    """1 if the answer says the right one of a few words and none of the others: before or after, yes or no.

    Before/after and co-occurrence are what Video RL asks about synthetic clips (2.0 sheet 10.5).

    Args:
        words: The words; longer ones may hold spaces.
    """

    def __init__(self, words: tuple[str, ...] = ("before", "after")) -> None:
        if len(words) < 2 or len({word.casefold() for word in words}) != len(words):
            raise ValueError(f"words={words}: expected at least two different words")
        self.words = words

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`.

        Raises:
            ValueError: If the expected answer says none or several of the words.
        """
        wanted, found = self._said(expected_answer(sample)), self._said(extract_answer(answer))
        if len(wanted) != 1:
            raise ValueError(
                f"sample {sample.id}: the expected answer says {wanted or 'none'} of {self.words}, not one"
            )
        if len(found) != 1:
            return RewardOutcome.cannot_read("several of the words" if found else "none of the words")
        return RewardOutcome(1.0, "right word") if found == wanted else RewardOutcome(0.0, "wrong word")

    def _said(self, text: str) -> set[str]:
        padded = "".join(letter if letter.isalnum() else " " for letter in text.casefold())
        padded = f" {' '.join(padded.split())} "
        return {word for word in self.words if f" {word.casefold()} " in padded}

    @classmethod
    def example(cls) -> Example:
        """The order of two events."""
        sample = example_sample("Does the ball fall before or after the jump?", "before")
        return Example(sample=sample, right="It falls before the jump.", wrong="after")
