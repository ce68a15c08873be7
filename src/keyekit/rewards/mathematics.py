"""Mathematical answers, equal in value whatever their form."""

from __future__ import annotations

import logging
import re
import unicodedata
import weakref
from collections.abc import Sequence
from typing import Any

from keyekit.data.processes import Outcome, WorkerPool
from keyekit.data.sample import Sample
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.base import Example, Reward, RewardOutcome, example_sample, expected_answer

__all__ = ["SymbolicMath", "is_words"]

_log = logging.getLogger(__name__)

_MOST_LETTERS = 1000
"""Longer final answers are no expressions; reading them costs time."""

_SET_AS_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}")
_OPERATORS = frozenset("+*/^_=<>")
_FUNCTIONS = frozenset(("sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt"))
_LONGEST_PRODUCT = 3
"""Letters in a row that are factors where there is an operator, as in ``F=ma``; more of them are a word."""

_OUTCOMES = {
    "equal": RewardOutcome(1.0, "equal"),
    "different": RewardOutcome(0.0, "different"),
    "unreadable": RewardOutcome.cannot_read("no expression"),
    "nothing expected": RewardOutcome.drop("the expected answer is no expression"),
}


class SymbolicMath(Reward):
    r"""1 if the final answer equals the expected one as an expression, as ``1/2``, ``0.5`` and ``\frac{2}{4}`` do.

    ``math-verify`` reads and compares, in processes that end with the answer that takes them too long. Put it behind a format
    gate, and before a judge with :class:`~keyekit.rewards.compose.Fallback`, as Keye-VL-2.0 does (2.0 sheet 10.4).

    An expected answer of words (:func:`is_words`), such as ``left``, is compared as words, case and white space aside. Where an
    expected answer is neither words nor an expression, the answers to its sample are dropped, with a warning.

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
            ValueError: If a sample has no expected answer.
            ModuleNotFoundError: If ``math-verify`` is not installed.
        """
        found = [extract_answer(answer) for answer in answers]
        wanted = [expected_answer(sample) for sample in samples]
        outcomes = [RewardOutcome.cannot_read("too long" if text.strip() else "empty") for text in found]
        asked = []
        for place, text in enumerate(found):
            if not text.strip() or len(text) > _MOST_LETTERS:
                continue
            if is_words(wanted[place]):
                outcomes[place] = _OUTCOMES["equal" if _plain(text) == _plain(wanted[place]) else "different"]
            else:
                asked.append(place)
        if asked:
            compared = self._processes().map([(wanted[place], found[place]) for place in asked])
            for place, verdict in zip(asked, compared, strict=True):
                outcomes[place] = _outcome(verdict)
        _tell_dropped(samples, outcomes)
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
    return _OUTCOMES[verdict.result]


def is_words(text: str) -> bool:
    r"""Whether a text is words, whose letters stand in order, and not mathematics, whose letters are factors.

    With a digit or a command of TeX it is mathematics. Else it is words if it has a letter of neither alphabet of mathematics
    (Latin and Greek), or letters in a row that are no function's name: two where there is no operator, as in ``left``, and four
    where there is one, as in ``time/distance``; ``x`` and ``F=ma`` are mathematics. What is set as text (``\text{no}``) counts
    as what it says.

    Args:
        text: An answer.

    Example:
        >>> [is_words(text) for text in ("left", "x", "F=ma", "3 apples", r"\text{no}", r"\sqrt{ab}")]
        [True, False, False, False, True, False]
    """
    text = _unwrapped(text)
    if "\\" in text or any(letter.isdigit() for letter in text):
        return False
    if any(letter.isalpha() and not _is_symbol(letter) for letter in text):
        return True
    rows = [row for row in re.findall(r"[^\W\d_]+", text) if row.lower() not in _FUNCTIONS]
    shortest = _LONGEST_PRODUCT + 1 if _OPERATORS & set(text) else 2
    return any(len(row) >= shortest for row in rows)


def _is_symbol(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith(("LATIN", "GREEK", "MATHEMATICAL"))


def _unwrapped(text: str) -> str:
    """Without signs that only say how a text is set."""
    while (inner := _SET_AS_TEXT.sub(r"\1", text)) != text:
        text = inner
    return text.replace("$", "")


def _plain(text: str) -> str:
    return " ".join(_unwrapped(text).split()).strip(" .。\"'").casefold()


def _tell_dropped(samples: Sequence[Sample], outcomes: Sequence[RewardOutcome]) -> None:
    dropped = {sample.id: sample.answer for sample, outcome in zip(samples, outcomes, strict=True) if outcome.dropped}
    for name, answer in dropped.items():
        _log.warning("sample %s: the expected answer %r is no expression: its answers are dropped", name, answer)
