"""A reward for each kind of question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from keyekit.data.sample import Sample
from keyekit.rewards.base import Example, Reward, RewardOutcome

__all__ = ["ByTask"]


class ByTask(Reward):
    """Lets a sample's task decide which reward looks at its answer, as mixtures of verifiable questions need.

    Video RL of Keye-VL-2.0 localises, counts and orders in one run (2.0 sheet 10.5); Keye-VL-1.5 mixes mathematics, charts,
    grounding and counting (8B sheet 5.8).

    Args:
        rewards: Reward by task; a name may hold ``*``. The first that matches decides.
        names: Whether the log tells the rewards apart by their task.

    Raises:
        ValueError: If there is no reward, or a sample's task has none.
    """

    def __init__(self, rewards: dict[str, Reward], names: bool = True) -> None:
        if not rewards:
            raise ValueError("name at least one task with its reward, or '*' for all")
        self.rewards = rewards
        self.names = names

    def outcomes(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :class:`~keyekit.rewards.base.Reward`."""
        chosen = [self._pattern(sample) for sample in samples]
        found: dict[int, RewardOutcome] = {}
        for pattern in dict.fromkeys(chosen):
            places = [place for place, name in enumerate(chosen) if name == pattern]
            outcomes = self.rewards[pattern].score([samples[p] for p in places], [answers[p] for p in places])
            found |= dict(zip(places, outcomes, strict=True))
        return [self._told(found[place], samples[place].task) for place in range(len(samples))]

    def _pattern(self, sample: Sample) -> str:
        for pattern in self.rewards:
            if fnmatchcase(sample.task, pattern):
                return pattern
        raise ValueError(
            f"sample {sample.id}: no reward for the task {sample.task!r}; there are {', '.join(self.rewards)}: add it, or '*'"
        )

    def _told(self, outcome: RewardOutcome, task: str) -> RewardOutcome:
        if outcome.dropped or not self.names:
            return outcome
        return replace(outcome, parts={**outcome.parts, task: outcome.value})

    @classmethod
    def example(cls) -> Example:
        """What one of the rewards has to tell apart; the suite builds one for all tasks."""
        from keyekit.rewards.counting import Counting

        return Counting.example()
