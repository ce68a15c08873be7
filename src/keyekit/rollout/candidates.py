"""Which of several answers to a question is to be preferred to which: the pairs of an alignment round (8B sheet 5.7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Candidate", "Choice", "best_of", "choose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One answer with its score.

    Args:
        text: What was said.
        value: What it is worth; NaN where nothing could be found out.
        sayable: Whether it may stand in a conversation; one with a token of the template in it would forge turns or pictures.
        whole: Whether the model ended it by itself. One that was cut off is never an example to follow: in training its end
            would look meant.
        parts: The score by parts.
        reason: Why it is worth that.
        tokens: Its length.
    """

    text: str
    value: float
    sayable: bool = True
    whole: bool = True
    parts: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    tokens: int = 0

    @property
    def is_known(self) -> bool:
        """Whether it has a score."""
        return math.isfinite(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A pair.

    Args:
        chosen: The better answer.
        rejected: The worse one.
    """

    chosen: Candidate
    rejected: Candidate

    @property
    def margin(self) -> float:
        """By how much the chosen answer is worth more."""
        return self.chosen.value - self.rejected.value


def best_of(candidates: Sequence[Candidate], accept: float = -math.inf) -> Candidate | None:
    """The answer worth most among those that are whole and worth at least ``accept``; of equals the shortest, then the first.

    Example:
        >>> found = best_of([Candidate(text="a", value=1.0, tokens=9), Candidate(text="b", value=1.0, tokens=2)])
        >>> found.text
        'b'
    """
    known = [candidate for candidate in candidates if candidate.is_known and candidate.sayable]
    good = [candidate for candidate in known if candidate.whole and candidate.value >= accept]
    return max(good, key=lambda candidate: (candidate.value, -candidate.tokens), default=None)


def choose(candidates: Sequence[Candidate], accept: float = -math.inf, min_margin: float = 0.0) -> Choice | None:
    """The best answer before the worst.

    Args:
        candidates: Answers to one question.
        accept: Least value of a chosen answer; the best of a bad lot is no example.
        min_margin: Least difference in value; below it the preference would be noise.

    Returns:
        The pair; ``None`` if no answer is good enough, or none is worse by the margin. Equal values make no pair.

    Example:
        >>> answers = [Candidate(text="red", value=1.0), Candidate(text="red red red", value=0.0)]
        >>> choose(answers, accept=0.5).rejected.text, choose(answers, min_margin=2.0)
        ('red red red', None)
    """
    chosen = best_of(candidates, accept)
    if chosen is None:
        return None
    others = [other for other in candidates if other.is_known and other.sayable and other.text != chosen.text]
    rejected = min(others, key=lambda candidate: candidate.value, default=None)
    if rejected is None or rejected.value >= chosen.value or chosen.value - rejected.value < min_margin:
        return None
    return Choice(chosen=chosen, rejected=rejected)
