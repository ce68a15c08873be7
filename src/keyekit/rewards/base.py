"""The contract of rewards: samples and answers in, one finite value with a reason for each out."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from keyekit.data.sample import ContentItem, Message, Sample
from keyekit.rewards.lost_samples import BrokenRewards

__all__ = ["AnswerReward", "Example", "Judgement", "Reward", "RewardOutcome", "example_sample", "expected_answer"]

_log = logging.getLogger(__name__)


class Judgement(Protocol):
    """What a round of rollouts needs to know about an answer; :class:`RewardOutcome` says more."""

    @property
    def value(self) -> float:
        """The reward; NaN if there is none."""
        ...

    @property
    def parts(self) -> dict[str, float]:
        """The reward by parts, for the log."""
        ...

    @property
    def unreadable(self) -> bool:
        """Whether the answer could not be read."""
        ...


@dataclass(frozen=True, slots=True)
class RewardOutcome:
    """What an answer is worth.

    Args:
        value: The reward; NaN where ``dropped``, so that whoever overlooks that learns nothing from it. :meth:`Reward.score`
            drops what else is no finite number.
        reason: Why, in a few words that can be counted: no part of the answer.
        parts: What it is made of, by name, for the log.
        dropped: Whether nothing could be found out, as when a judge does not reply: the sample must not be learnt from.
        unreadable: Whether the answer could not be read, for the log; see :meth:`cannot_read`.

    Raises:
        ValueError: If the reason is empty, or a dropped outcome has a value.

    Example:
        >>> RewardOutcome(1.0, "equal").value
        1.0
    """

    value: float
    reason: str
    parts: dict[str, float] = field(default_factory=dict)
    dropped: bool = False
    unreadable: bool = False

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError("an outcome needs a reason: say in a few words why the answer is worth what it is")
        if self.dropped and not math.isnan(self.value):
            raise ValueError(f"a dropped outcome has no value, got {self.value}")

    @property
    def broken(self) -> dict[str, float]:
        """What is no finite number, of the value and its parts; nothing of a dropped outcome."""
        numbers = {} if self.dropped else {"value": self.value, **self.parts}
        return {name: number for name, number in numbers.items() if not math.isfinite(number)}

    @classmethod
    def drop(cls, reason: str) -> RewardOutcome:
        """An outcome that says that nothing could be found out."""
        return cls(math.nan, reason, dropped=True)

    @classmethod
    def cannot_read(cls, why: str) -> RewardOutcome:
        """What an answer is worth that says nothing that could be looked at: 0, and it is counted.

        Args:
            why: What is missing, such as ``no integer``.
        """
        return cls(0.0, f"unreadable: {why}", unreadable=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question with answers of which a reward has to prefer one.

    Args:
        sample: The question.
        right: An answer that is worth more.
        wrong: An answer that is worth less.
    """

    sample: Sample
    right: str
    wrong: str


class Reward(ABC):
    """Base of the rewards.

    A reward is a function of samples and answers: the same ones give the same values, in whatever order and company they come
    (a judge behind a server as far as the server does).
    """

    max_broken_share = 0.2
    """Largest share of the last 256 answers that may have no finite reward; more stop the run."""

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """Reward answers; one whose reward is no finite number is dropped, with a warning, and counted.

        Args:
            samples: The sample that each answer is for; those of a group repeat theirs.
            answers: What the model said, special tokens left out.

        Raises:
            ValueError: If the numbers differ, or a sample lacks what the reward needs.
            RewardBroken: If too many rewards are no finite numbers.
        """
        if len(samples) != len(answers):
            raise ValueError(f"{len(samples)} samples but {len(answers)} answers: every answer needs its sample")
        outcomes = self.outcomes(samples, answers)
        if len(outcomes) != len(answers):
            raise ValueError(f"{type(self).__name__} gave {len(outcomes)} outcomes for {len(answers)} answers")
        return self._finite(samples, outcomes)

    def __call__(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :meth:`score`."""
        return self.score(samples, answers)

    def _finite(self, samples: Sequence[Sample], outcomes: list[RewardOutcome]) -> list[RewardOutcome]:
        """The outcomes, those that are no finite numbers dropped."""
        broken = [(sample, outcome) for sample, outcome in zip(samples, outcomes, strict=True) if outcome.broken]
        if broken:
            sample, outcome = broken[0]
            _log.warning(
                "%s computed %s for sample %s (%s): answers whose reward is no finite number are dropped, %d of these %d",
                type(self).__name__,
                outcome.broken,
                sample.id,
                outcome.reason,
                len(broken),
                len(outcomes),
            )
        for outcome in outcomes:
            self._broken_rewards.count(bool(outcome.broken))
        return [RewardOutcome.drop(f"not finite: {one.reason}") if one.broken else one for one in outcomes]

    @cached_property
    def _broken_rewards(self) -> BrokenRewards:
        return BrokenRewards(self.max_broken_share, what=type(self).__name__)

    @abstractmethod
    def outcomes(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """One outcome per answer; what a reward has to define."""

    @classmethod
    @abstractmethod
    def example(cls) -> Example:
        """What the reward, with its default arguments, has to tell apart; its tests and its page show it."""


class AnswerReward(Reward):
    """Base of rewards that look at one answer at a time."""

    def outcomes(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :class:`Reward`."""
        return [self.outcome(sample, answer) for sample, answer in zip(samples, answers, strict=True)]

    @abstractmethod
    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """What one answer is worth."""


def expected_answer(sample: Sample) -> str:
    """The known answer of a sample.

    Raises:
        ValueError: If it has none.
    """
    if sample.answer is None:
        raise ValueError(f"sample {sample.id} has no known answer to compare with; give one, or use another reward")
    return sample.answer


def example_sample(question: str, answer: str | None = None, meta: dict[str, object] | None = None) -> Sample:
    """A sample of one question, for examples.

    Args:
        question: What is asked.
        answer: The known answer.
        meta: What else is known.
    """
    message = Message(role="user", content=(ContentItem(kind="text", text=question),))
    return Sample(id=f"example:{question}", task="example", messages=(message,), answer=answer, meta=dict(meta or {}))
