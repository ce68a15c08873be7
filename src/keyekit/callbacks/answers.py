"""The report of an evaluation: every task against chance and against a model that cannot see."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.table import Table

from keyekit.metrics.answers import AnswerScores, Prediction, metric_name

__all__ = ["AnswerReport"]

_NAMES = {"open": "{metric}", "blank": "blind_{metric}", "swapped": "swapped_{metric}"}


class AnswerReport(lightning.Callback):
    """Scores generated answers per task.

    In a test the same questions are asked under the conditions of the datamodule: ``open`` eyes, ``blank`` pictures, and
    pictures ``swapped`` with another sample's. The metrics are ``<task>/accuracy`` (or ``mean_iou``),
    ``<task>/blind_accuracy``, ``<task>/swapped_accuracy``, ``<task>/chance``, ``<task>/questions`` and ``mean/accuracy``.

    Args:
        mean_over: Tasks that ``mean/accuracy`` averages; all by default.
    """

    def __init__(self, mean_over: list[str] | None = None) -> None:
        self.mean_over = mean_over
        self.metrics: dict[str, float] = {}
        self._scores: dict[str, AnswerScores] = {}

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Forget earlier answers."""
        self._scores = {}

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the answers of a pack."""
        self._add("open", trainer, pl_module, outputs)

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the answers of a pack under its condition."""
        conditions = getattr(trainer.datamodule, "test_conditions", ("open",))  # pyright: ignore[reportAttributeAccessIssue]
        self._add(conditions[dataloader_idx], trainer, pl_module, outputs)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log the scores."""
        if not self._scores:
            return
        found = {
            f"val/{task}/{metric_name(task)}": row["score"] for task, row in self._results().get("open", {}).items()
        }
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log the scores and print the table."""
        results = self._results()
        self.metrics = self._flatten(results)
        for logger in trainer.loggers:
            logger.log_metrics({f"test/{name}": value for name, value in self.metrics.items()}, trainer.global_step)
        self._print(results)

    def _add(self, condition: str, trainer: lightning.Trainer, pl_module: Any, outputs: Any) -> None:
        if not isinstance(outputs, dict) or "predictions" not in outputs:
            return  # this task generates no answers
        predictions: list[Prediction] = [p for p in outputs["predictions"] if p.info.answer is not None]
        if condition not in self._scores:
            tasks = trainer.datamodule.heldout_tasks  # pyright: ignore[reportAttributeAccessIssue]
            self._scores[condition] = AnswerScores(tasks).to(pl_module.device)
        self._scores[condition].update(predictions)

    def _results(self) -> dict[str, dict[str, dict[str, float]]]:
        return {condition: scores.compute() for condition, scores in self._scores.items()}

    def _flatten(self, results: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for condition, tasks in results.items():
            for task, row in tasks.items():
                metrics[f"{task}/{_NAMES.get(condition, condition).format(metric=metric_name(task))}"] = row["score"]
        for task, row in results.get("open", {}).items():
            metrics |= {f"{task}/{name}": row[name] for name in ("chance", "questions") if name in row}
        averaged = [row["score"] for task, row in results.get("open", {}).items() if task in (self.mean_over or [task])]
        if averaged:
            metrics["mean/accuracy"] = sum(averaged) / len(averaged)
        return metrics

    @rank_zero_only
    def _print(self, results: dict[str, dict[str, dict[str, float]]]) -> None:
        seen = results.get("open", {})
        if not seen:
            return
        table = Table(title="held-out answers")
        table.add_column("task")
        for heading in ("metric", "questions", "score", "chance", *(c for c in results if c != "open")):
            table.add_column(heading, justify="right")
        for task, row in seen.items():
            blinded = [f"{tasks[task]['score']:.3f}" for condition, tasks in results.items() if condition != "open"]
            chance = f"{row['chance']:.3f}" if "chance" in row else "-"
            table.add_row(task, metric_name(task), f"{row['questions']:.0f}", f"{row['score']:.3f}", chance, *blinded)
        averaged = f"mean over {', '.join(self.mean_over or seen)}: {self.metrics['mean/accuracy']:.3f}"
        table.caption = averaged
        Console().print(table)
