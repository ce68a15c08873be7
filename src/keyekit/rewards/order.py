"""The order of things: frames that were shuffled, events of a clip."""

from __future__ import annotations

import re

from keyekit.data.sample import Sample
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample, expected_answer

__all__ = ["OrderMatch"]

_SEPARATORS = re.compile(r"\s*(?:->|=>|→|,|;|<|\bthen\b|\n)\s*")


class OrderMatch(AnswerReward):
    """Whether things were put into their right order, such as six shuffled frames (8B sheet 5.4; 2.0 sheet 10.5).

    An answer lists them with commas, semicolons, arrows, "then" or line ends between them. Each has to occur once.

    Args:
        partial: Whether an order that is not all right is worth the share of pairs that stand in the right order, less what
            guessing would get: 0 for half of them and fewer. Otherwise it is worth 0.
    """

    def __init__(self, partial: bool = False) -> None:
        self.partial = partial

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`.

        Raises:
            ValueError: If the expected answer does not list at least two different things.
        """
        wanted, found = _things(expected_answer(sample)), _things(extract_answer(answer))
        if len(set(wanted)) != len(wanted) or len(wanted) < 2:
            raise ValueError(
                f"sample {sample.id}: the expected answer {sample.answer!r} is no order of different things"
            )
        if sorted(found) != sorted(wanted):
            return RewardOutcome.cannot_read("not the same things")
        if found == wanted:
            return RewardOutcome(1.0, "right order", {"pairs": 1.0})
        places = [wanted.index(thing) for thing in found]
        pairs = [one < other for place, one in enumerate(places) for other in places[place + 1 :]]
        share = sum(pairs) / len(pairs)
        return RewardOutcome(max(2 * share - 1, 0.0) if self.partial else 0.0, "wrong order", {"pairs": share})

    @classmethod
    def example(cls) -> Example:
        """Four frames."""
        return Example(
            sample=example_sample("Sort the frames.", "3, 1, 4, 2"), right="3 -> 1 -> 4 -> 2", wrong="1,2,3,4"
        )


def _things(text: str) -> list[str]:
    parts = (part.strip(" \t.[]()\"'").casefold() for part in _SEPARATORS.split(text.strip()))
    return [part for part in parts if part]
