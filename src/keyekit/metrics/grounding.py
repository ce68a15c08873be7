"""Scores of temporal grounding: mean overlap and how often it is large enough."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torchmetrics
from torch import nn

from keyekit.metrics.means import Estimate, GroupedMeans
from keyekit.metrics.spans import Span, temporal_iou

__all__ = ["MEAN_IOU", "TemporalGroundingScores"]

MEAN_IOU = "mIoU"
"""Name of the mean overlap."""


class TemporalGroundingScores(torchmetrics.Metric):
    """mIoU and R1@threshold, in percent: the share of answers that overlap at least so much (Keye-VL-2.0 sheet 12).

    Args:
        groups: Names of groups that answers may belong to.
        thresholds: Overlaps that count as found.
        confidence: See :class:`~keyekit.metrics.means.GroupedMeans`.
        draws: See there.
        seed: See there.

    Example:
        >>> scores = TemporalGroundingScores()
        >>> scores.update([(0.0, 4.0)], [(0.0, 8.0)], units=["clip"])
        >>> {measure: found["overall"].value for measure, found in scores.compute().items()}
        {'mIoU': 50.0, 'R1@0.3': 100.0, 'R1@0.5': 100.0, 'R1@0.7': 0.0}
    """

    full_state_update = False

    def __init__(
        self,
        groups: Sequence[str] = (),
        thresholds: Sequence[float] = (0.3, 0.5, 0.7),
        confidence: float = 0.95,
        draws: int = 2000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.thresholds = tuple(thresholds)
        self.measures = (MEAN_IOU, *(f"R1@{threshold:g}" for threshold in self.thresholds))
        self.means = nn.ModuleList(GroupedMeans(groups, confidence, draws, seed) for _ in self.measures)

    def update(
        self,
        predicted: Sequence[Span | None],
        expected: Sequence[Span],
        units: Sequence[str],
        groups: Sequence[Collection[str]] | None = None,
    ) -> None:
        """Add answers.

        Args:
            predicted: Spans in seconds; ``None`` for an answer without one, which overlaps nothing.
            expected: The true spans.
            units: The video of each answer.
            groups: Groups of each answer.
        """
        overlaps = [temporal_iou(one, other) for one, other in zip(predicted, expected, strict=True)]
        found = [[float(overlap >= threshold) for overlap in overlaps] for threshold in self.thresholds]
        for means, values in zip(self._means(), [overlaps, *found], strict=True):
            means.update(values, units, groups)

    def compute(self) -> dict[str, dict[str, Estimate]]:
        """For each measure the estimates of :class:`~keyekit.metrics.means.GroupedMeans`."""
        return {measure: means.compute() for measure, means in zip(self.measures, self._means(), strict=True)}

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        for means in self._means():
            means.reset()

    def _means(self) -> list[GroupedMeans]:
        return cast("list[GroupedMeans]", list(self.means))
