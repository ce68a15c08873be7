"""Mathematical answers, equal in value whatever their form."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from keyekit.data.processes import Outcome, WorkerPool
from keyekit.data.sample import Sample
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.base import Example, Reward, RewardOutcome, example_sample, expected_answer

__all__ = ["SymbolicMath"]

_MOST_LETTERS = 1000
"""Longer final answers are no expressions; reading them costs time."""

_REASONS = {"equal": (1.0, "equal"), "different": (0.0, "different"), "unreadable": (0.0, "unreadable: no expression")}


class SymbolicMath(Reward):
    r"""1 if the final answer equals the expected one as an expression, as ``1/2``, ``0.5`` and ``\frac{2}{4}`` do.

    ``math-verify`` reads and compares, in processes that end with the answer that takes them too long. Put it behind a format
    gate, and before a judge with :class:`~keyekit.rewards.compose.Fallback`, as Keye-VL-2.0 does (2.0 sheet 10.4).

    Args:
        seconds: Longest time for one answer.
        workers: Processes; they start with the first answers.
    """

    def __init__(self, seconds: float = 5.0, workers: int = 1) -> None:
        if seconds <= 0 or workers < 1:
            raise ValueError(f"need seconds > 0 and workers >= 1, got {seconds} and {workers}")
        self.seconds = seconds
        self.workers = workers
        self._pool: WorkerPool | None = None

    def outcomes(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :class:`~keyekit.rewards.base.Reward`.

        Raises:
            ValueError: If an expected answer is no expression.
            ModuleNotFoundError: If ``math-verify`` is not installed.
        """
        found = [extract_answer(answer) for answer in answers]
        wanted = [expected_answer(sample) for sample in samples]
        outcomes = [RewardOutcome(0.0, "unreadable: too long" if text.strip() else "empty") for text in found]
        asked = [place for place, text in enumerate(found) if text.strip() and len(text) <= _MOST_LETTERS]
        if asked:
            compared = self._processes().map([(wanted[place], found[place]) for place in asked])
            for place, verdict in zip(asked, compared, strict=True):
                outcomes[place] = _outcome(verdict)
        return outcomes

    def _processes(self) -> WorkerPool:
        if self._pool is None:
            from keyekit.rewards.equivalence import compare  # costs seconds, and needs math-verify

            self._pool = WorkerPool(compare, self.workers, self.seconds)
            weakref.finalize(self, self._pool.close)
        return self._pool

    def close(self) -> None:
        """End the processes; they also end with this one."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pool": None}

    @classmethod
    def example(cls) -> Example:
        """A half."""
        sample = example_sample("What is 2/4?", "\\frac{1}{2}")
        return Example(sample=sample, right="<answer>It is \\boxed{0.5}</answer>", wrong="\\boxed{2}")


def _outcome(verdict: Outcome) -> RewardOutcome:
    if verdict.died:
        return RewardOutcome(0.0, "took too long" if verdict.died == "timeout" else "crashed the comparison")
    return RewardOutcome(*_REASONS[verdict.result])
