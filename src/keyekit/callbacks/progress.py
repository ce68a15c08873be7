"""Progress of training and evaluation with loss, tokens per second and time left."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from keyekit.callbacks.throughput import counts_of

__all__ = ["TrainingProgress"]


class TrainingProgress(lightning.Callback):
    """One line that follows the run: a bar on a terminal, a plain line now and then elsewhere.

    Args:
        seconds_between_lines: Where there is no terminal, print at most one line in this time.
        refresh_seconds: On a terminal, refresh at most this often; each refresh reads the loss once.
    """

    def __init__(self, seconds_between_lines: float = 10.0, refresh_seconds: float = 0.5) -> None:
        self.seconds_between_lines = seconds_between_lines
        self.refresh_seconds = refresh_seconds
        self._bar: Progress | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin the line of the fit."""
        self._begin("train", int(trainer.estimated_stepping_batches), trainer.global_step)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step."""
        self._tokens += counts_of(batch)["tokens"]
        self._advance(trainer, trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Finish the line of the fit."""
        self._advance(trainer, trainer.global_step, last=True)
        self._end()

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin the line of the test."""
        self._begin("test", int(sum(trainer.num_test_batches)), 0)

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a pack of prompts."""
        self._tokens += counts_of(batch)["tokens"]
        self._advance(trainer, self._done + 1)

    def on_test_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Finish the line of the test."""
        self._advance(trainer, self._done, last=True)
        self._end()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Give the terminal back."""
        self._end()

    @rank_zero_only
    def _begin(self, stage: str, total: int, done: int) -> None:
        self._stage, self._total, self._done, self._first = stage, total, done, done
        self._tokens = 0.0
        self._started = self._shown = time.perf_counter()
        if sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
            )
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(elapsed_when_finished=False))
            self._bar.start()
            self._line = self._bar.add_task(stage, total=total, completed=done, state="")

    @rank_zero_only
    def _advance(self, trainer: lightning.Trainer, done: int, last: bool = False) -> None:
        self._done = done
        now = time.perf_counter()
        waited = now - self._shown
        if not last and waited < (self.refresh_seconds if self._bar else self.seconds_between_lines):
            return
        self._shown = now
        elapsed = max(now - self._started, 1e-9)
        state = f"{self._tokens / elapsed:,.0f} tokens/s"
        loss = trainer.callback_metrics.get("train/loss") if self._stage == "train" else None
        if loss is not None:
            state = f"loss {float(loss):.4f}  {state}"
        if self._bar is not None:
            self._bar.update(self._line, completed=done, state=state)
            return
        left = elapsed / max(done - self._first, 1) * (self._total - done)
        print(f"{self._stage} {done}/{self._total}  {state}  {_clock(elapsed)} passed, {_clock(left)} left", flush=True)  # noqa: T201

    @rank_zero_only
    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
