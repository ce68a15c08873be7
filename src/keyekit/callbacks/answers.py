"""The report of an evaluation: every task against chance and against a model that cannot see."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from rich.console import Console
from rich.table import Table

from keyekit.metrics.answers import AnswerScores, metric_name

__all__ = ["CONDITIONS", "AnswerReport", "conditions_of"]

CONDITIONS = ("open", "blank", "swapped")
"""What the test loaders of a datamodule show unless its ``test_conditions`` say otherwise."""

_PREFIXES = {"open": "", "blank": "blind_"}

_Scores = dict[str, dict[str, dict[str, float]]]
"""Condition, then task, then ``score``, ``questions`` and perhaps ``chance``."""


class AnswerReport(lightning.Callback):
    """Score generated answers per task.

    In a test the same questions are asked under several conditions: with ``open`` eyes, with ``blank`` pictures, and with
    pictures ``swapped`` with another sample's. The end of the test prints a table, logs ``test/<metric>`` and keeps
    ``metrics``, a flat mapping: ``<task>/accuracy`` (``mean_iou`` for tasks scored by overlap), ``<task>/blind_accuracy``,
    ``<task>/swapped_accuracy``, ``<task>/chance`` where the samples state it, ``<task>/questions``, and ``mean/accuracy``,
    ``mean/blind_accuracy`` and ``mean/swapped_accuracy``. Validation logs ``val/<task>/accuracy`` and ``val/mean/accuracy``.

    Steps hand over their answers as ``{"predictions": list[Prediction]}``. Samples without a known answer are left out,
    with a warning that counts them.

    Args:
        mean_over: Tasks that the mean averages, each with equal weight; all by default.
    """

    def __init__(self, mean_over: list[str] | None = None) -> None:
        self.mean_over = mean_over
        self.metrics: dict[str, float] = {}
        self._scores: dict[str, AnswerScores] = {}
        self._results: _Scores = {}
        self._unknown = 0

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Forget earlier answers."""
        self._begin(("open",))

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the answers to a pack of prompts."""
        self._add("open", outputs)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log the scores."""
        scores = self._computed(trainer, pl_module)["open"]
        values = {f"val/{task}/{metric_name(task)}": row["score"] for task, row in scores.items()}
        mean = self._mean(scores)
        if mean is not None:
            values["val/mean/accuracy"] = mean
        pl_module.log_dict(values, sync_dist=trainer.world_size > 1)

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Forget earlier answers.

        Raises:
            ValueError: If there are more test loaders than conditions.
        """
        conditions = conditions_of(trainer)
        if len(trainer.num_test_batches) > len(conditions):
            raise ValueError(
                f"{len(trainer.num_test_batches)} test loaders but {len(conditions)} conditions {conditions}: "
                "name one for each loader in the datamodule's test_conditions"
            )
        self._begin(conditions)

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the answers to a pack of prompts under its condition."""
        self._add(conditions_of(trainer)[dataloader_idx], outputs)

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Compute the metrics and log them."""
        self._results = self._computed(trainer, pl_module)
        self.metrics = self._flat(self._results)
        for logger in trainer.loggers if self.metrics else ():
            logger.log_metrics({f"test/{name}": value for name, value in self.metrics.items()}, trainer.global_step)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Print the table."""
        self._print(self._results)

    def _begin(self, conditions: tuple[str, ...]) -> None:
        self._scores = {condition: AnswerScores() for condition in conditions}
        for scores in self._scores.values():
            scores.update(())  # a rank without questions takes part in the sum, without torchmetrics' warning
        self._unknown = 0

    def _add(self, condition: str, outputs: Any) -> None:
        if not isinstance(outputs, dict) or "predictions" not in outputs:
            return  # this task generates no answers
        known = [prediction for prediction in outputs["predictions"] if prediction.info.answer is not None]
        self._unknown += len(outputs["predictions"]) - len(known)
        self._scores[condition].update(known)

    def _computed(self, trainer: lightning.Trainer, pl_module: Any) -> _Scores:
        if self._unknown:
            rank_zero_warn(f"{self._unknown} samples have no known answer and are not scored")
        if trainer.world_size > 1:  # where the ranks can talk
            self._scores = {condition: scores.to(pl_module.device) for condition, scores in self._scores.items()}
        return {condition: scores.compute() for condition, scores in self._scores.items()}

    def _flat(self, results: _Scores) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for condition, tasks in results.items():
            prefix = _PREFIXES.get(condition, f"{condition}_")
            metrics |= {f"{task}/{prefix}{metric_name(task)}": row["score"] for task, row in tasks.items()}
            mean = self._mean(tasks)
            if mean is not None:
                metrics[f"mean/{prefix}accuracy"] = mean
        for task, row in results.get("open", {}).items():
            metrics |= {f"{task}/{name}": row[name] for name in ("chance", "questions") if name in row}
        return metrics

    def _mean(self, tasks: dict[str, dict[str, float]]) -> float | None:
        """Mean score, or ``None`` if a task that it needs was not asked."""
        wanted = list(tasks) if self.mean_over is None else self.mean_over
        missing = [task for task in wanted if task not in tasks]
        if missing and tasks:
            rank_zero_warn(f"no mean over {wanted}: {missing} not among the tasks of this evaluation, {sorted(tasks)}")
        if missing or not wanted:
            return None
        return sum(tasks[task]["score"] for task in wanted) / len(wanted)

    @rank_zero_only
    def _print(self, results: _Scores) -> None:
        asked = {condition: tasks for condition, tasks in results.items() if tasks}
        if not asked:
            return
        open_eyes = asked.pop("open", {})
        table = Table(title="answers to held-out questions")
        table.add_column("task")
        for heading in ("metric", "questions", "score", "chance", *asked):
            table.add_column(heading, justify="right")
        for task, row in open_eyes.items():
            others = [_written(tasks.get(task, {}).get("score")) for tasks in asked.values()]
            cells = (metric_name(task), f"{row['questions']:.0f}", _written(row["score"]), _written(row.get("chance")))
            table.add_row(task, *cells, *others)
        means = [self._mean(tasks) for tasks in (open_eyes, *asked.values())]
        if means[0] is not None:
            table.add_section()
            name = "mean" if self.mean_over is None else f"mean of {', '.join(self.mean_over)}"
            table.add_row(name, "", "", _written(means[0]), "", *map(_written, means[1:]))
        Console().print(table)


def conditions_of(trainer: lightning.Trainer) -> tuple[str, ...]:
    """What each test loader of the trainer's datamodule shows."""
    return tuple(getattr(getattr(trainer, "datamodule", None), "test_conditions", CONDITIONS))


def _written(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
