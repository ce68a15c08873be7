"""Honest throughput: what was processed per second, and how long training waited for data."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import astuple
from typing import Any

import lightning
import torch

from keyekit.callbacks.rates import StepMeter, Work
from keyekit.callbacks.utilisation import StepFlops, device_name, peak_flops

__all__ = ["Throughput"]

_log = logging.getLogger(__name__)


class Throughput(lightning.Callback):
    """Log rates over a window of steps under ``throughput/``, summed over all ranks.

    - ``tokens_per_second``: tokens of samples, without the padding of packs;
    - ``text_tokens_per_second`` and ``vision_tokens_per_second``: the same of text and of pictures alone;
    - ``targets_per_second``: tokens that carry a loss (pairs of a contrastive batch);
    - ``patches_per_second``: vision patches before merging;
    - ``samples_per_second``: conversations (pairs of a contrastive batch);
    - ``steps_per_second``: batches of one rank;
    - ``data_wait``: the share of time between the end of a step and the start of the next, which is waiting for data and
      whatever other callbacks do between steps; validation counts nowhere;
    - ``padding``: the share of padding among all tokens of packs;
    - ``flops_per_second``: useful operations (:mod:`keyekit.models.flops`), where those of the network are known;
    - ``utilisation``: their share of what the devices could do at most (MFU), where that is known. The log says once why one
      of the two is not.

    They are logged every ``trainer.log_every_n_steps`` optimizer steps. Time is taken on the host without synchronising.

    Args:
        window: Steps in the sliding window.
        skip: First steps of the fit that the averages over the whole fit leave out (allocation, compilation).
        peak_flops: Operations a second that one device can do at most; by default what its data sheet says of 16-bit products.
    """

    def __init__(self, window: int = 50, skip: int = 5, peak_flops: float | None = None) -> None:
        self.window = window
        self.skip = skip
        self.peak_flops = peak_flops
        self.totals = Work()
        """What the fit processed after the first steps; over all ranks once the fit has ended."""
        self._meter = StepMeter(window)
        self._seen = 0
        self._logged = -1
        self._flops: StepFlops | None = None
        self._peak: float | None = None
        self._recent_flops: deque[float] = deque(maxlen=window)

    @property
    def averages(self) -> dict[str, float]:
        """The rates above over the whole fit without its first steps; empty before there is any."""
        return self.totals.rates()

    @property
    def tokens_per_second(self) -> float | None:
        """Mean rate over the fit; ``None`` before there is any."""
        return self.averages.get("tokens_per_second")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin to count."""
        self.totals = Work()
        self._meter = StepMeter(self.window)
        self._seen, self._logged = 0, trainer.global_step
        self._recent_flops = deque(maxlen=self.window)
        self._flops, self._peak = self._account(trainer, pl_module)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note when a step begins."""
        self._meter.begin_step()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step, and log at the trainer's interval."""
        step = self._meter.end_step(batch)
        if self._flops is not None:
            self._recent_flops.append(self._flops.of(batch))
        self._seen += 1
        if self._seen > self.skip:
            self.totals += step
        interval: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        due = interval and trainer.global_step % interval == 0
        if due and trainer.global_step != self._logged:
            self._logged = trainer.global_step
            recent = _over_ranks(trainer, pl_module, self._meter.recent)
            rates = recent.rates() | self._utilisation(trainer, pl_module, recent.seconds)
            for logger in trainer.loggers:
                logger.log_metrics(
                    {f"throughput/{name}": rate for name, rate in rates.items()}, step=trainer.global_step
                )

    def _account(self, trainer: lightning.Trainer, pl_module: Any) -> tuple[StepFlops | None, float | None]:
        """What counts operations and what the device can do; says once what is not known."""
        try:
            flops = StepFlops(getattr(pl_module, "network", pl_module))
        except ValueError as error:
            _log.info("operations per second are not known: %s", error)
            return None, None
        name, precision = device_name(pl_module.device), str(trainer.precision)
        peak = self.peak_flops or peak_flops(name, precision)
        if peak is None:
            _log.info(
                "utilisation is not known: the peak of %s in %s is not on record (peak_flops gives it)", name, precision
            )
        return flops, peak

    def _utilisation(self, trainer: lightning.Trainer, pl_module: Any, seconds: float) -> dict[str, float]:
        """Useful operations a second over the window and all ranks, and their share of the devices' peak."""
        if self._flops is None or seconds <= 0:
            return {}
        done = sum(self._recent_flops)
        if trainer.world_size > 1:
            summed = torch.tensor(done, dtype=torch.float32, device=pl_module.device)
            done = float(trainer.strategy.reduce(summed, reduce_op="sum"))  # pyright: ignore[reportArgumentType]
        rate = done / seconds
        share = {} if self._peak is None else {"utilisation": rate / (self._peak * trainer.world_size)}
        return {"flops_per_second": rate} | share

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Stop the clock for a validation."""
        self._meter.pause()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Let it go on."""
        self._meter.resume()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Add up the ranks."""
        self.totals = _over_ranks(trainer, pl_module, self.totals)


def _over_ranks(trainer: lightning.Trainer, pl_module: Any, work: Work) -> Work:
    """Counts summed over ranks; steps and times averaged, for ranks work at the same time."""
    if trainer.world_size == 1:
        return work
    values = torch.tensor(astuple(work), dtype=torch.float32, device=pl_module.device)
    summed = Work.of(trainer.strategy.reduce(values, reduce_op="sum").tolist())  # pyright: ignore[reportAttributeAccessIssue]
    ranks = trainer.world_size
    counts = astuple(summed)[:-3]
    return Work.of([*counts, summed.steps / ranks, summed.seconds / ranks, summed.waited / ranks])
