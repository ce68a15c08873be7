"""How good generated answers are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torchmetrics
from torch import Tensor

from keyekit.batch import SampleInfo
from keyekit.metrics.boxes import box_iou, parse_box
from keyekit.metrics.extraction import extract_answer
from keyekit.metrics.spans import parse_span, temporal_iou

__all__ = ["AnswerScores", "Prediction", "box_iou", "metric_name", "score", "temporal_iou"]

_OVERLAP: dict[str, Callable[[str, str], float]] = {
    "temporal": lambda text, answer: temporal_iou(parse_span(text), parse_span(answer)),
    "box": lambda text, answer: box_iou(parse_box(text), parse_box(answer)),
}
"""Tasks whose answers are compared by overlap."""


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
    return "mean_iou" if task in _OVERLAP else "accuracy"


def score(prediction: Prediction) -> float:
    """Between 0 and 1: overlap for time spans and boxes, equality of the final answer for everything else.

    The final answer is what :func:`~keyekit.metrics.extraction.extract_answer` finds behind a thought, as rewards take it.
    Texts are equal when they are so after folding case and collapsing white space. An overlap answer that cannot be read
    scores 0.

    Raises:
        ValueError: If the sample has no known answer.

    Example:
        >>> score(Prediction(SampleInfo(id="a", task="count", start=0, stop=4, answer="2"), " 2 "))
        1.0
    """
    expected = prediction.info.answer
    if expected is None:
        raise ValueError(f"sample {prediction.info.id} has no known answer to score against")
    answer = extract_answer(prediction.text)
    overlap = _OVERLAP.get(prediction.info.task)
    if overlap is not None:
        return overlap(answer, expected)
    return float(_plain(answer) == _plain(extract_answer(expected)))


class AnswerScores(torchmetrics.Metric):
    """Mean score and mean chance of each task, correct under several ranks.

    Ranks may meet different tasks and different numbers of questions. Chance is averaged over the samples whose
    ``meta["chance"]`` is set.

    Args:
        tasks: Names of tasks to expect; others join when they are met.

    Example:
        >>> scores = AnswerScores()
        >>> scores.update([Prediction(SampleInfo(id="a", task="count", start=0, stop=4, answer="2"), "2")])
        >>> scores.compute()
        {'count': {'score': 1.0, 'questions': 1.0}}
    """

    totals: Tensor
    """``[tasks, 4]`` float64: sums of scores, questions, chance, and questions whose chance is known."""

    full_state_update = False

    def __init__(self, tasks: Iterable[str] = ()) -> None:
        super().__init__()
        self._expected = tuple(sorted(set(tasks)))
        self.tasks = self._expected
        self.add_state("totals", torch.zeros(len(self.tasks), 4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Iterable[Prediction]) -> None:
        """Add predictions.

        Raises:
            ValueError: If a sample has no known answer.
        """
        rows: dict[str, list[float]] = {}
        for prediction in predictions:
            chance = prediction.info.meta.get("chance")
            known = chance is not None
            found = [score(prediction), 1.0, float(chance) if known else 0.0, float(known)]
            before = rows.get(prediction.info.task, [0.0] * 4)
            rows[prediction.info.task] = [a + b for a, b in zip(before, found, strict=True)]
        self._know(rows)
        for task, row in rows.items():
            self.totals[self.tasks.index(task)] += torch.tensor(row, dtype=torch.float64, device=self.totals.device)

    def compute(self) -> dict[str, dict[str, float]]:
        """For each task with predictions: ``score``, ``questions`` and, where known, ``chance``."""
        result: dict[str, dict[str, float]] = {}
        for task, (total, count, chance, with_chance) in zip(self.tasks, self.totals.tolist(), strict=True):
            if count:
                result[task] = {"score": total / count, "questions": count}
                if with_chance:
                    result[task]["chance"] = chance / with_chance
        return result

    def reset(self) -> None:
        """Forget everything but the tasks to expect."""
        super().reset()
        self.tasks = self._expected

    def sync(
        self,
        dist_sync_fn: Callable | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable | None = None,
    ) -> None:
        """Let all ranks agree on the tasks before their sums are added up."""
        available = distributed_available or self.distributed_available_fn
        if should_sync and not self._is_synced and callable(available) and available():
            group = process_group or self.process_group
            names: list[Any] = [None] * torch.distributed.get_world_size(group)
            torch.distributed.all_gather_object(names, self.tasks, group=group)
            self._know(task for rank in names for task in rank)
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def _know(self, tasks: Iterable[str]) -> None:
        """Make room for tasks, in alphabetical order, so that ranks that know the same tasks have the same rows."""
        known = tuple(sorted({*self.tasks, *tasks}))
        if known == self.tasks:
            return
        totals = self.totals.new_zeros(len(known), 4)
        for row, task in enumerate(self.tasks):
            totals[known.index(task)] = self.totals[row]
        self.tasks, self.totals = known, totals


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
