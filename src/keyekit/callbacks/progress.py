"""Progress of training and evaluation: one line with loss, tokens per second and time left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from keyekit.callbacks.rates import StepMeter

__all__ = ["TrainingProgress"]

_WINDOW = 50
"""Steps over which tokens per second are measured."""


class TrainingProgress(lightning.Callback):
    """One line that follows the run: a bar on a terminal, a plain line now and then elsewhere.

    It shows the stage, steps done and in total, the last loss, tokens per second of this rank (without padding), and the
    time passed and left. A test over several loaders is one line that names the condition being tested. Reading the loss
    waits for the device; that happens once per refresh and nowhere else. Lightning's own bar, if there is one, is turned
    off.

    Args:
        refresh_seconds: On a terminal, refresh at most this often.
        seconds_between_lines: Where output is no terminal, print a line at most this often; the first and the last line of
            a stage are always printed.
    """

    def __init__(self, refresh_seconds: float = 0.5, seconds_between_lines: float = 10.0) -> None:
        self.refresh_seconds = refresh_seconds
        self.seconds_between_lines = seconds_between_lines
        self._fit: _Stage | None = None
        self._evaluation: _Stage | None = None
        self._display: _Bar | _Lines | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Turn Lightning's bar off."""
        if trainer.progress_bar_callback is not None:
            trainer.progress_bar_callback.disable()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin the line of the fit."""
        total = trainer.estimated_stepping_batches
        self._fit = _Stage("train", None if total in (-1, float("inf")) else int(total), trainer.global_step)
        self._begin(trainer, self._fit)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note when a step begins."""
        if self._fit is not None:
            self._fit.meter.begin_step()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step."""
        if self._fit is None:
            return
        self._fit.meter.end_step(batch)
        self._fit.done = trainer.global_step
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._fit.loss = loss.detach() if isinstance(loss, torch.Tensor) else None
        self._show(self._fit)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Finish the line of the fit."""
        self._end(self._fit)
        self._fit = None

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin the line of a validation, below that of the fit if it is part of one."""
        if self._fit is not None:
            self._fit.meter.pause()
        name = "sanity check" if trainer.sanity_checking else "validate"
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._evaluation = _Stage(name, _total(batches))
        self._begin(trainer, self._evaluation)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        self._evaluated(batch)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Finish the line of the validation before reports are printed."""
        self._end(self._evaluation)
        self._evaluation = None

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Let the clock of the fit go on."""
        if self._fit is not None:
            self._fit.meter.resume()

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin the line of the test."""
        self._evaluation = _Stage("test", _total(trainer.num_test_batches))
        self._begin(trainer, self._evaluation)

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        conditions = getattr(getattr(trainer, "datamodule", None), "test_conditions", ())
        if self._evaluation is not None and dataloader_idx < len(conditions):
            self._evaluation.name = f"test {conditions[dataloader_idx]}"
        self._evaluated(batch)

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Finish the line of the test before reports are printed."""
        self._end(self._evaluation)
        self._evaluation = None

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Give the terminal back."""
        self._close()

    def _evaluated(self, batch: Any) -> None:
        if self._evaluation is not None:
            self._evaluation.meter.end_step(batch)
            self._evaluation.done += 1
            self._show(self._evaluation)

    def _begin(self, trainer: lightning.Trainer, stage: _Stage) -> None:
        if not trainer.is_global_zero:
            return
        if self._display is None:
            terminal = sys.stdout.isatty()
            self._display = _Bar(self.refresh_seconds) if terminal else _Lines(self.seconds_between_lines)
        self._display.begin(stage)

    def _show(self, stage: _Stage) -> None:
        if self._display is not None:
            self._display.show(stage)

    def _end(self, stage: _Stage | None) -> None:
        if self._display is not None and stage is not None:
            self._display.end(stage)
            if self._fit is None or stage is self._fit:
                self._close()

    def _close(self) -> None:
        self._fit = self._evaluation = None
        if self._display is not None:
            self._display.close()
            self._display = None


@dataclass
class _Stage:
    """What there is to say about a stage of the run."""

    name: str
    total: int | None
    done: int = 0
    loss: torch.Tensor | None = None
    meter: StepMeter = field(default_factory=lambda: StepMeter(_WINDOW))
    started: float = field(default_factory=time.perf_counter)
    first: int = field(init=False)
    """Steps done before this process took over."""

    def __post_init__(self) -> None:
        self.first = self.done

    def counted(self) -> str:
        return f"{self.done}/{'?' if self.total is None else self.total}"

    def state(self) -> str:
        """Loss, rate and times; waits for the device if there is a loss on one."""
        elapsed = time.perf_counter() - self.started
        parts = [] if self.loss is None else [f"loss {self.loss.mean().item():.4f}"]
        rate = self.meter.recent.rates().get("tokens_per_second")
        parts += [f"{rate:,.0f} tokens/s"] if rate else []
        parts.append(clock(elapsed))
        if self.total is not None and self.done > self.first:
            left = elapsed / (self.done - self.first) * max(self.total - self.done, 0)
            parts.append(f"{clock(left)} left")
        return " · ".join(parts)


class _Bar:
    """A terminal: one live line for each stage in progress. No thread refreshes it."""

    def __init__(self, seconds: float) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[counted]}"),
            TextColumn("{task.fields[state]}", markup=False),
        )
        self._progress = Progress(*columns, console=Console(file=sys.stdout, force_terminal=True), auto_refresh=False)
        self._progress.start()
        self._seconds = seconds
        self._shown = -seconds
        self._tasks: dict[int, TaskID] = {}

    def begin(self, stage: _Stage) -> None:
        self._tasks[id(stage)] = self._progress.add_task(stage.name, total=stage.total, counted="", state="")
        self._draw(stage)

    def show(self, stage: _Stage) -> None:
        if time.perf_counter() - self._shown >= self._seconds:
            self._draw(stage)

    def end(self, stage: _Stage) -> None:
        self._draw(stage)
        task = self._tasks.pop(id(stage))
        if self._tasks:  # a validation inside a fit leaves no line behind
            self._progress.remove_task(task)

    def close(self) -> None:
        self._progress.stop()

    def _draw(self, stage: _Stage) -> None:
        self._progress.update(
            self._tasks[id(stage)],
            description=stage.name,
            completed=stage.done,
            counted=stage.counted(),
            state=stage.state(),
        )
        self._progress.refresh()
        self._shown = time.perf_counter()


class _Lines:
    """A file or a pipe: plain lines."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._shown = time.perf_counter()
        self._open = 0

    def begin(self, stage: _Stage) -> None:
        self._open += 1
        if self._open == 1:
            self._write(stage)

    def show(self, stage: _Stage) -> None:
        if time.perf_counter() - self._shown >= self._seconds:
            self._write(stage)

    def end(self, stage: _Stage) -> None:
        self._open -= 1
        if not self._open:
            self._write(stage)

    def close(self) -> None:
        """Nothing to give back."""

    def _write(self, stage: _Stage) -> None:
        sys.stdout.write(f"{stage.name} {stage.counted()} · {stage.state()}\n")
        sys.stdout.flush()
        self._shown = time.perf_counter()


def clock(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``.

    Example:
        >>> clock(75.2), clock(3700)
        ('1:15', '1:01:40')
    """
    minutes, seconds = divmod(int(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _total(batches: list[int | float]) -> int | None:
    """Batches of all loaders; ``None`` if one has no length."""
    total = sum(batches)
    return None if total == float("inf") else int(total)
