"""Text that was to be read from a picture."""

from __future__ import annotations

import unicodedata

from keyekit.data.sample import Sample
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample, expected_answer

__all__ = ["Transcription", "edit_distance"]


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and replacements that turn one text into the other (Levenshtein).

    By bit vectors (Myers, 1999, in the form of Hyyrö, 2003): a column of the table is two integers as long as the text, so
    that pages are compared in milliseconds.

    Example:
        >>> edit_distance("kitten", "sitting")
        3
    """
    if not first:
        return len(second)
    places: dict[str, int] = {}
    for place, letter in enumerate(first):
        places[letter] = places.get(letter, 0) | 1 << place
    every, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = every, 0, len(first)
    for letter in second:
        equal = places.get(letter, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        up, down = falls | ~(diagonal | rises), rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up = up << 1 | 1
        rises, falls = (down << 1 | ~(diagonal | up)) & every, up & diagonal & every
    return distance


class Transcription(AnswerReward):
    """How much of a text was read: 1 less the edit distance over the longer length, case, spaces and punctuation aside.

    Keye-VL-2.0 rewards a match after normalising case, white space and punctuation (2.0 sheet 10.4): ``exact`` gives that. The
    share of letters says more about long texts, where a match is rare.

    Args:
        exact: Whether all but a match is worth 0.
        threshold: Smaller shares are worth 0.
    """

    def __init__(self, exact: bool = False, threshold: float = 0.0) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold={threshold}: a share lies between 0 and 1")
        self.exact = exact
        self.threshold = threshold

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`.

        Raises:
            ValueError: If nothing but spaces and punctuation is expected.
        """
        wanted, found = _letters(expected_answer(sample)), _letters(extract_answer(answer))
        if not wanted:
            raise ValueError(
                f"sample {sample.id}: the expected answer {sample.answer!r} holds neither letter nor digit"
            )
        if not found:
            return RewardOutcome.cannot_read("empty")
        if found == wanted:
            return RewardOutcome(1.0, "equal", {"similarity": 1.0})
        similarity = 1 - edit_distance(found, wanted) / max(len(found), len(wanted))
        value = 0.0 if self.exact or similarity < self.threshold else similarity
        return RewardOutcome(value, "different", {"similarity": similarity})

    @classmethod
    def example(cls) -> Example:
        """A sign."""
        return Example(sample=example_sample("What does it say?", "Exit 24!"), right="EXIT 24", wrong="Entry 8")


def _letters(text: str) -> str:
    """Letters, digits and signs that carry meaning; full-width forms as the usual ones."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in folded if not letter.isspace() and unicodedata.category(letter)[0] != "P")
