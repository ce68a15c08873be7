"""Honest throughput: what was processed per second, and how long training waited for data."""

from __future__ import annotations

import time
from typing import Any

import lightning

from keyekit.batch import Batch, ContrastiveBatch

__all__ = ["Throughput"]


class Throughput(lightning.Callback):
    """Log rates over a window of steps under ``throughput/``.

    ``tokens_per_second`` counts decoder tokens of this rank without padding, ``targets_per_second`` those that carry a loss,
    ``patches_per_second`` vision patches, ``samples_per_second`` samples. ``data_wait`` is the share of wall time between
    the end of a step and the start of the next. Multiply rates by the number of ranks for the whole run.

    Args:
        window: Steps per reported rate.
        skip: First steps left out of the totals (allocation, compilation).
    """

    def __init__(self, window: int = 20, skip: int = 5) -> None:
        self.window = window
        self.skip = skip
        self.totals = {"tokens": 0.0, "targets": 0.0, "patches": 0.0, "samples": 0.0, "seconds": 0.0, "waited": 0.0}
        self._recent = dict.fromkeys(self.totals, 0.0)
        self._steps = 0
        self._ended: float | None = None
        self._started = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Mean rate over the fit."""
        return self.totals["tokens"] / self.totals["seconds"] if self.totals["seconds"] else 0.0

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note when a step begins."""
        self._started = time.perf_counter()
        if self._ended is None:
            self._ended = self._started

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step and log a full window."""
        now = time.perf_counter()
        assert self._ended is not None
        step = counts_of(batch) | {"seconds": now - self._ended, "waited": self._started - self._ended}
        self._ended = now
        self._steps += 1
        for name, value in step.items():
            self._recent[name] += value
            if self._steps > self.skip:
                self.totals[name] += value
        if self._steps % self.window == 0:
            seconds = max(self._recent["seconds"], 1e-9)
            kinds = ("tokens", "targets", "patches", "samples")
            rates = {f"throughput/{kind}_per_second": self._recent[kind] / seconds for kind in kinds}
            for logger in trainer.loggers:
                logger.log_metrics(
                    rates | {"throughput/data_wait": self._recent["waited"] / seconds}, trainer.global_step
                )
            self._recent = dict.fromkeys(self.totals, 0.0)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Do not count the time of validation."""
        self._ended = None


def counts_of(batch: Batch | ContrastiveBatch) -> dict[str, float]:
    """Tokens, targets, patches and samples of a batch, without padding."""
    patches = 0 if batch.vision is None else batch.vision.patches.shape[0]
    if isinstance(batch, ContrastiveBatch):
        tokens, samples = batch.segments.total, len(batch.segments)
        return {"tokens": tokens, "targets": samples, "patches": patches, "samples": samples}
    tokens = batch.samples[-1].stop if batch.samples else 0
    return {"tokens": tokens, "targets": batch.num_targets, "patches": patches, "samples": len(batch.samples)}
