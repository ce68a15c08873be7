"""How good generated answers are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torchmetrics
from torch import Tensor

from keyekit.batch import SampleInfo

__all__ = ["AnswerScores", "Prediction", "box_iou", "metric_name", "score", "temporal_iou"]

_OVERLAP_TASKS = ("temporal", "box")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Prediction:
    """A generated answer beside the sample that it answers.

    Args:
        info: The sample.
        text: What the model said.
    """

    info: SampleInfo
    text: str


def metric_name(task: str) -> str:
    """``mean_iou`` for tasks scored by overlap, ``accuracy`` for the others."""
    return "mean_iou" if task in _OVERLAP_TASKS else "accuracy"


def score(prediction: Prediction) -> float:
    """Between 0 and 1: overlap for time spans and boxes, equality of the text for everything else.

    Raises:
        ValueError: If the sample has no known answer.
    """
    expected = prediction.info.answer
    if expected is None:
        raise ValueError(f"sample {prediction.info.id} has no known answer to score against")
    if prediction.info.task == "temporal":
        return temporal_iou(_numbers(prediction.text, 2), _numbers(expected, 2))
    if prediction.info.task == "box":
        return box_iou(_numbers(prediction.text, 4), _numbers(expected, 4))
    return float(_plain(prediction.text) == _plain(expected))


def temporal_iou(first: list[float] | None, second: list[float] | None) -> float:
    """Intersection over union of two spans ``[start, end]`` in seconds; 0 if one is missing or reversed."""
    if first is None or second is None or first[1] <= first[0] or second[1] <= second[0]:
        return 0.0
    overlap = min(first[1], second[1]) - max(first[0], second[0])
    union = max(first[1], second[1]) - min(first[0], second[0])
    return max(overlap, 0.0) / union


def box_iou(first: list[float] | None, second: list[float] | None) -> float:
    """Intersection over union of two boxes ``[x1, y1, x2, y2]``; 0 if one is missing or has no area."""
    if first is None or second is None:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    if any(box[2] <= box[0] or box[3] <= box[1] for box in (first, second)):
        return 0.0
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    return overlap / (sum(areas) - overlap)


class AnswerScores(torchmetrics.Metric):
    """Mean score and mean chance of each task, correct under several ranks.

    Args:
        tasks: Names of the tasks that may occur.
    """

    totals: Tensor

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self.tasks = tuple(sorted(set(tasks)))
        self.add_state("totals", torch.zeros(len(self.tasks), 4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: list[Prediction]) -> None:
        """Add predictions."""
        for prediction in predictions:
            chance = prediction.info.meta.get("chance")
            row = [score(prediction), 1.0, 0.0 if chance is None else float(chance), float(chance is not None)]
            self.totals[self.tasks.index(prediction.info.task)] += torch.tensor(row, dtype=torch.float64)

    def compute(self) -> dict[str, dict[str, float]]:
        """For each task with predictions: ``score``, ``questions`` and, where known, ``chance``."""
        result = {}
        for task, (total, count, chance, with_chance) in zip(self.tasks, self.totals.tolist(), strict=True):
            if count:
                result[task] = {"score": total / count, "questions": count}
                if with_chance:
                    result[task]["chance"] = chance / with_chance
        return result


def _numbers(text: str, count: int) -> list[float] | None:
    found = [float(number) for number in _NUMBER.findall(text.replace(" - ", " "))]
    return found if len(found) == count else None


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
