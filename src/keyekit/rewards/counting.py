"""Counts."""

from __future__ import annotations

import re

from keyekit.data.sample import Sample
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample, expected_answer

__all__ = ["Counting"]

_INTEGER = re.compile(r"(?<![\w.])(?<!\d,)[-+]?\d+(?![\w]|[.,]\d)")


class Counting(AnswerReward):
    """1 for exactly the expected integer; put it behind a format gate, as Keye-VL-2.0 does (2.0 sheet 10.4).

    The final answer has to hold one integer alone: who lists several has not decided.
    """

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`.

        Raises:
            ValueError: If the expected answer is no integer.
        """
        expected = expected_answer(sample)
        if not _INTEGER.fullmatch(expected.strip()):
            raise ValueError(f"sample {sample.id}: the expected answer {expected!r} is no integer")
        found = {int(number) for number in _INTEGER.findall(extract_answer(answer))}
        if len(found) != 1:
            return RewardOutcome.cannot_read("several integers" if found else "no integer")
        return RewardOutcome(1.0, "right count") if found == {int(expected)} else RewardOutcome(0.0, "wrong count")

    @classmethod
    def example(cls) -> Example:
        """Three things."""
        return Example(sample=example_sample("How many circles?", "3"), right="There are 3 circles.", wrong="4")
