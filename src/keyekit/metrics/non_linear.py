"""The grouped, non-linear score of Video-MME-v2 (Keye-VL-2.0 sheet 12): four questions count together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torchmetrics

from keyekit.metrics.means import Estimate, GroupedMeans

__all__ = [
    "CHAINS",
    "RELEVANCE",
    "NonLinearScores",
    "QuestionGroup",
    "guessing_score",
    "non_linear_score",
]

RELEVANCE = "relevance"
"""Structure of groups whose questions ask for one thing in four ways; the others are chains."""

_SQUARES = (0.0, 1 / 16, 4 / 16, 9 / 16, 1.0)

CHAINS: dict[str, tuple[float, ...]] = {
    "[1,2,3,4]": _SQUARES,
    "[1,[2,3],4]": (0.0, 1 / 12, 4 / 12, 7 / 12, 1.0),
    "[[1,2],3,4]": (0.0, 1 / 10, 2 / 10, 5 / 10, 1.0),
}
"""Structures of groups whose questions build on each other: score of each length of the correct beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionGroup:
    """Four questions that are scored together.

    Args:
        structure: :data:`RELEVANCE` or a key of :data:`CHAINS`; blanks in it do not matter.
        correct: 1 for each question answered rightly, 0 for each other. The official script gives -1 to an answer in which it
            finds no letter; :func:`non_linear_score` says what becomes of it.
        unit: What the group belongs to, such as its video.
        groups: Categories that it counts for.
        options: How many answers each question offers, for the score of guessing; ``None`` if that is not known.
    """

    structure: str
    correct: tuple[int, int, int, int]
    unit: str
    groups: tuple[str, ...] = ()
    options: int | None = None


def non_linear_score(structure: str, correct: Sequence[int]) -> float:
    """Score of a group, between 0 and 1.

    A relevance group scores the square of its share of right answers. A chain scores by the length of its correct beginning;
    of two interchangeable questions the second may come first. An entry of -1, as the official script writes it, takes one
    from the count of a relevance group and lets a chain go on.

    Args:
        structure: :data:`RELEVANCE` or a key of :data:`CHAINS`; blanks in it do not matter.
        correct: Four entries, in the order of the questions.

    Raises:
        ValueError: If the structure is unknown or there are not four entries.

    Example:
        >>> non_linear_score("relevance", (1, 0, 1, 0)), non_linear_score("[1, 2, 3, 4]", (1, 0, 1, 0))
        (0.25, 0.0625)
    """
    if len(correct) != 4:
        raise ValueError(f"a group has four questions, got {len(correct)}")
    if structure == RELEVANCE:
        return _SQUARES[max(sum(correct), 0)]
    chain = structure.replace(" ", "")
    if chain not in CHAINS:
        raise ValueError(f"there is no structure {structure!r}: a group is {RELEVANCE} or one of {', '.join(CHAINS)}")
    length = next((place for place, right in enumerate(correct) if not right), 4)
    if (chain, length) == ("[1,[2,3],4]", 1):
        length += bool(correct[2])
    elif (chain, length) == ("[[1,2],3,4]", 0):
        length += bool(correct[1])
    return CHAINS[chain][length]


def guessing_score(structure: str, options: int) -> float:
    """Expected score of a group when every question is guessed among so many answers.

    Example:
        >>> guessing_score("relevance", 2)
        0.3125
    """
    outcomes = product((0, 1), repeat=4)
    odds = (1 - 1 / options, 1 / options)
    return sum(prod(odds[right] for right in outcome) * non_linear_score(structure, outcome) for outcome in outcomes)


class NonLinearScores(torchmetrics.Metric):
    """Mean score of groups of four questions, in percent.

    Args:
        groups: Names of the categories.
        confidence: See :class:`~keyekit.metrics.means.GroupedMeans`.
        draws: See there.
        seed: See there.

    Example:
        >>> scores = NonLinearScores()
        >>> scores.update([QuestionGroup(structure="relevance", correct=(1, 1, 1, 0), unit="001")])
        >>> scores.compute()["overall"].value
        56.25
    """

    full_state_update = False

    def __init__(self, groups: Sequence[str] = (), confidence: float = 0.95, draws: int = 2000, seed: int = 0) -> None:
        super().__init__()
        self.means = GroupedMeans(groups, confidence, draws, seed)

    def update(self, groups: Collection[QuestionGroup]) -> None:
        """Add groups.

        Raises:
            ValueError: If a structure or category is unknown.
        """
        self.means.update(
            [non_linear_score(group.structure, group.correct) for group in groups],
            [group.unit for group in groups],
            [group.groups for group in groups],
            [None if group.options is None else guessing_score(group.structure, group.options) for group in groups],
        )

    def compute(self) -> dict[str, Estimate]:
        """The estimates of :class:`~keyekit.metrics.means.GroupedMeans`."""
        return self.means.compute()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.means.reset()
