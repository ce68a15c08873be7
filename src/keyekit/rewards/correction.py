"""Correcting oneself: what a second answer is worth beside the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from keyekit.data.sample import Sample
from keyekit.rewards.base import Example, Reward, RewardOutcome, example_sample

__all__ = ["FIRST_ANSWER", "SelfCorrection"]

FIRST_ANSWER = "first_answer"
"""Where a sample keeps what was answered before its turn of correction, in ``meta``."""


class SelfCorrection(Reward):
    """Another reward for the last answer, and a bonus in proportion to what it gained over the first one.

    An answer that got worse loses as much. Where the first answer has a reward of its own, a wrong one never pays: over both
    turns it brings at most what a right one does, as long as the bonus is at most 1. Samples without a first answer
    (``meta["first_answer"]``) had no turn of correction: they get the other reward alone. Keye publishes neither form nor
    weight.

    Args:
        reward: What an answer is worth.
        bonus: Weight of the gain; 1 or less, else a wrong first answer pays.

    Raises:
        ValueError: If the bonus is not between 0 and 1.
    """

    def __init__(self, reward: Reward, bonus: float = 0.5) -> None:
        if not 0 <= bonus <= 1:
            raise ValueError(f"bonus={bonus}: expected 0 to 1; more would pay for a first answer that is wrong")
        self.reward = reward
        self.bonus = bonus

    def outcomes(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :class:`~keyekit.rewards.base.Reward`."""
        places = [place for place, sample in enumerate(samples) if FIRST_ANSWER in sample.meta]
        firsts = [str(samples[place].meta[FIRST_ANSWER]) for place in places]
        scored = self.reward.score([*samples, *(samples[place] for place in places)], [*answers, *firsts])
        before = dict(zip(places, scored[len(answers) :], strict=True))
        return [self._outcome(last, before.get(place)) for place, last in enumerate(scored[: len(answers)])]

    def _outcome(self, last: RewardOutcome, first: RewardOutcome | None) -> RewardOutcome:
        if last.dropped or first is None:
            return last
        if first.dropped:
            return first
        gain = last.value - first.value
        reason = "corrected" if gain > 0 else "spoilt" if gain < 0 else f"unchanged: {last.reason}"
        value = last.value + self.bonus * gain
        return replace(last, value=value, reason=reason, parts={**last.parts, "gain": gain})

    @classmethod
    def example(cls) -> Example:
        """A wrong count, corrected or kept."""
        sample = example_sample("How many circles?", "3", {FIRST_ANSWER: "4"})
        return Example(sample=sample, right="3", wrong="4")
