"""Boxes: grounding, and regions that changed between two pictures."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence

from keyekit.data.sample import Sample
from keyekit.metrics.boxes import Box, box_iou
from keyekit.metrics.extraction import extract_answer
from keyekit.rewards.assignment import best_pairs
from keyekit.rewards.base import AnswerReward, Example, RewardOutcome, example_sample, expected_answer

__all__ = ["BoxMatching", "ChangedRegions", "read_boxes", "without_duplicates"]

_SIDE = 1000.0
"""Boxes are in thousandths of the picture (2.0 sheet 10.4)."""

_FOUR = re.compile(r"[\[(]\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*[\])]")
_EMPTY = re.compile(r"\[\s*\]|\bnone\b|\bno (?:changes?|boxes|objects?)\b", re.IGNORECASE)


def read_boxes(text: str) -> list[Box] | None:
    """All boxes of an answer, cut to the picture; those without an area are left out.

    Args:
        text: The answer. Boxes are four numbers in brackets; ``[]`` or "none" says that there is none.

    Returns:
        The boxes; ``None`` if the text says neither which there are nor that there is none.

    Example:
        >>> read_boxes("[[10, 20, 30, 40], [900, 0, 1200, 50]]")
        [(10.0, 20.0, 30.0, 40.0), (900.0, 0.0, 1000.0, 50.0)]
        >>> read_boxes("No change."), read_boxes("on the left") is None
        ([], True)
    """
    found = [tuple(min(max(float(number), 0.0), _SIDE) for number in four) for four in _FOUR.findall(text)]
    if not found:
        return [] if _EMPTY.search(text) else None
    boxes = [(left, top, right, bottom) for left, top, right, bottom in found if left < right and top < bottom]
    return boxes or None


def without_duplicates(boxes: Sequence[Box], overlap: float) -> list[Box]:
    """Boxes that overlap none before them by more than ``overlap``."""
    kept: list[Box] = []
    for box in boxes:
        if all(box_iou(box, other) <= overlap for other in kept):
            kept.append(box)
    return kept


class _Boxes(AnswerReward):
    """Reads boxes and pairs them; the rewards differ in what they make of the pairs."""

    def __init__(self, duplicate_overlap: float, duplicate_penalty: float) -> None:
        if not 0 < duplicate_overlap <= 1:
            raise ValueError(f"duplicate_overlap={duplicate_overlap}: an overlap lies between 0 and 1")
        if duplicate_penalty < 0:
            raise ValueError(f"duplicate_penalty={duplicate_penalty}: a penalty is at least 0; it is subtracted")
        self.duplicate_overlap = duplicate_overlap
        self.duplicate_penalty = duplicate_penalty

    def outcome(self, sample: Sample, answer: str) -> RewardOutcome:
        """See :class:`~keyekit.rewards.base.AnswerReward`.

        Raises:
            ValueError: If the expected answer holds no boxes and does not say that there are none.
        """
        wanted = read_boxes(expected_answer(sample))
        if wanted is None:
            raise ValueError(f"sample {sample.id}: the expected answer {sample.answer!r} holds no boxes, nor says '[]'")
        said = read_boxes(extract_answer(answer))
        if said is None:
            return RewardOutcome.cannot_read("no boxes")
        return self._compare(said, wanted)

    def _compare(self, said: list[Box], wanted: list[Box]) -> RewardOutcome:
        kept = without_duplicates(said, self.duplicate_overlap)
        fine = self.duplicate_penalty * (len(said) - len(kept))
        if not wanted:
            value = 0.0 if said else 1.0
            return RewardOutcome(value - fine, "boxes where there are none" if said else "none, as there are")
        table = [[box_iou(one, other) for other in wanted] for one in kept]
        overlaps = [table[row][column] for row, column in best_pairs(table)]
        return self._worth(overlaps, len(kept), len(wanted), fine)

    @abstractmethod
    def _worth(self, overlaps: list[float], said: int, wanted: int, fine: float) -> RewardOutcome:
        """What matched boxes are worth, given how many were said and wanted, and the fine for duplicates."""


class BoxMatching(_Boxes):
    """Mean overlap of boxes with those they are matched to, less a penalty for duplicates (2.0 sheet 10.4, grounding).

    Near copies of a box are counted and left out, the rest is matched by the Hungarian algorithm on overlaps; a match below the
    threshold counts as none. The mean is over the larger number of boxes, so that missing and additional ones cost. The sheet
    publishes neither threshold nor penalty: the defaults are ours.

    Args:
        min_overlap: Smallest overlap of a match.
        duplicate_overlap: A box that overlaps an earlier one by more is a duplicate.
        duplicate_penalty: Subtracted for each duplicate.
    """

    def __init__(
        self, min_overlap: float = 0.5, duplicate_overlap: float = 0.9, duplicate_penalty: float = 0.1
    ) -> None:
        super().__init__(duplicate_overlap, duplicate_penalty)
        if not 0 <= min_overlap <= 1:
            raise ValueError(f"min_overlap={min_overlap}: an overlap lies between 0 and 1")
        self.min_overlap = min_overlap

    def _worth(self, overlaps: list[float], said: int, wanted: int, fine: float) -> RewardOutcome:
        found = [overlap for overlap in overlaps if overlap and overlap >= self.min_overlap]
        mean = sum(found) / max(said, wanted)
        reason = "all found" if len(found) == said == wanted else "some found" if found else "none found"
        return RewardOutcome(mean - fine, reason, {"overlap": mean, "duplicates": fine})

    @classmethod
    def example(cls) -> Example:
        """Two boxes, one of which is missed."""
        sample = example_sample("Where are the cars?", "[[100, 100, 300, 300], [500, 500, 700, 800]]")
        return Example(
            sample=sample, right="[[510, 500, 700, 800], [100, 100, 300, 310]]", wrong="[[510, 500, 700, 800]]"
        )


class ChangedRegions(_Boxes):
    """Which regions of two pictures differ: ``F weight F_soft + overlap weight sum(IoU) / max(n, m) - penalty duplicates``.

    That is the perception reward of synthetic-data RL (2.0 sheet 10.2); for a pair without a change, saying so is worth 1 and
    every box costs. The sheet defines neither the soft F-score nor the weights. Here a match counts for the F-score in
    proportion to its overlap up to ``full_overlap``, from where it counts whole.

    Args:
        f_weight: Weight of the F-score.
        overlap_weight: Weight of the mean overlap.
        full_overlap: Overlap from which a match is whole.
        duplicate_overlap: A box that overlaps an earlier one by more is a duplicate.
        duplicate_penalty: Subtracted for each duplicate.
        box_penalty: Subtracted for each box where nothing changed.
    """

    def __init__(
        self,
        f_weight: float = 0.5,
        overlap_weight: float = 0.5,
        full_overlap: float = 0.5,
        duplicate_overlap: float = 0.9,
        duplicate_penalty: float = 0.1,
        box_penalty: float = 0.1,
    ) -> None:
        super().__init__(duplicate_overlap, duplicate_penalty)
        if not 0 < full_overlap <= 1:
            raise ValueError(f"full_overlap={full_overlap}: an overlap lies between 0 and 1")
        if min(f_weight, overlap_weight, box_penalty) < 0:
            raise ValueError("weights and penalties are at least 0; penalties are subtracted")
        self.f_weight = f_weight
        self.overlap_weight = overlap_weight
        self.full_overlap = full_overlap
        self.box_penalty = box_penalty

    def _compare(self, said: list[Box], wanted: list[Box]) -> RewardOutcome:
        if said and not wanted:
            fine = self.box_penalty * len(said)
            return RewardOutcome(-fine, "boxes where nothing changed", {"boxes": fine})
        return super()._compare(said, wanted)

    def _worth(self, overlaps: list[float], said: int, wanted: int, fine: float) -> RewardOutcome:
        hits = sum(min(overlap / self.full_overlap, 1.0) for overlap in overlaps)
        f_score, mean = 2 * hits / (said + wanted), sum(overlaps) / max(said, wanted)
        value = self.f_weight * f_score + self.overlap_weight * mean - fine
        parts = {"f_score": f_score, "overlap": mean, "duplicates": fine}
        return RewardOutcome(value, "some found" if hits else "none found", parts)

    @classmethod
    def example(cls) -> Example:
        """One change, found or claimed elsewhere."""
        sample = example_sample("What changed?", "[[100, 100, 300, 300]]")
        return Example(sample=sample, right="[[110, 100, 300, 300]]", wrong="[[600, 600, 900, 900]]")
