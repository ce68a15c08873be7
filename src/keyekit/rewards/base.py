"""The contract of rewards: samples and answers in, one finite value with a reason for each out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from keyekit.data.sample import ContentItem, Message, Sample

__all__ = ["AnswerReward", "Example", "Judgement", "Reward", "RewardOutcome", "example_sample", "expected_answer"]


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


@dataclass(frozen=True, slots=True)
class RewardOutcome:
    """What an answer is worth.

    Args:
        value: The reward, a finite number; NaN where ``dropped``, so that whoever overlooks that learns nothing from it.
        reason: Why, in a few words that can be counted: no part of the answer.
        parts: What it is made of, by name, for the log.
        dropped: Whether nothing could be found out, as when a judge does not reply: the sample must not be learnt from.

    Raises:
        ValueError: If the value is not finite, the reason is empty, or a dropped outcome has a value.

    Example:
        >>> RewardOutcome(1.0, "equal").value
        1.0
    """

    value: float
    reason: str
    parts: dict[str, float] = field(default_factory=dict)
    dropped: bool = False

    def __post_init__(self) -> None:
        if not self.reason:
            raise ValueError("an outcome needs a reason: say in a few words why the answer is worth what it is")
        if self.dropped:
            if not math.isnan(self.value):
                raise ValueError(f"a dropped outcome has no value, got {self.value}")
            return
        wrong = {name: value for name, value in {"value": self.value, **self.parts}.items() if not math.isfinite(value)}
        if wrong:
            raise ValueError(f"rewards are finite numbers, got {wrong} ({self.reason}); drop what cannot be rewarded")

    @classmethod
    def drop(cls, reason: str) -> RewardOutcome:
        """An outcome that says that nothing could be found out."""
        return cls(math.nan, reason, dropped=True)


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

    def score(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """Reward answers.

        Args:
            samples: The sample that each answer is for; those of a group repeat theirs.
            answers: What the model said, special tokens left out.

        Raises:
            ValueError: If the numbers differ, a sample lacks what the reward needs, or a value is not finite.
        """
        if len(samples) != len(answers):
            raise ValueError(f"{len(samples)} samples but {len(answers)} answers: every answer needs its sample")
        outcomes = self.outcomes(samples, answers)
        if len(outcomes) != len(answers):
            raise ValueError(f"{type(self).__name__} gave {len(outcomes)} outcomes for {len(answers)} answers")
        return outcomes

    def __call__(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :meth:`score`."""
        return self.score(samples, answers)

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
