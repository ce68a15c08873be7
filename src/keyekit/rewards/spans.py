"""When something happens, in seconds."""

from __future__ import annotations

from keyekit.data.sample import Sample
from keyekit.metrics.extraction import extract_answer
from keyekit.metrics.spans import find_span, temporal_iou
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample, expected_answer

__all__ = ["TemporalOverlap"]


class TemporalOverlap(AnswerReward):
    """Intersection over union of the span that is said and the one that is right (2.0 sheet 10.5, temporal grounding)."""

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`.

        Raises:
            ValueError: If the expected answer is no span.
        """
        wanted, found = find_span(expected_answer(sample)), find_span(extract_answer(answer))
        if wanted is None or wanted[0] >= wanted[1]:
            raise ValueError(f"sample {sample.id}: the expected answer {sample.answer!r} is no span of time")
        if found is None:
            return RewardOutcome.cannot_read("no two times")
        if found[0] >= found[1]:
            return RewardOutcome(0.0, "ends before it begins")
        overlap = temporal_iou(found, wanted)
        return RewardOutcome(overlap, "overlaps" if overlap else "elsewhere")

    @classmethod
    def example(cls) -> Example:
        """An event of three seconds."""
        sample = example_sample("When does the ball fall?", "2.0 - 5.0")
        return Example(sample=sample, right="From 2 to 4.5 seconds.", wrong="4 - 9")
