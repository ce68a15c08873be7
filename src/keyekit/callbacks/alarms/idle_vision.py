"""A rank whose data shows no pictures although the vision tower is to be trained."""

from __future__ import annotations

from typing import Any, Literal

import lightning

from keyekit.batch import Batch
from keyekit.callbacks.alarms.base import Alarm
from keyekit.optim.gradient_norms import network_parts

__all__ = ["IdleVision"]


class IdleVision(Alarm):
    """Sounds when a rank has had no picture for many packs although its vision tower or projector trains.

    Training on text alone is no fault, and mixtures may hold long stretches of it, so this one warns unless told otherwise.

    Args:
        packs: Packs without a picture, one after the other, that are too many.
        action: ``stop`` ends the run, ``warn`` says once what is wrong.

    Raises:
        ValueError: If ``packs`` is not positive.
    """

    meaning = (
        "the vision tower learns nothing from this rank, only weight decay moves it, and under several ranks those "
        "with pictures do all of its work while this one waits"
    )
    remedy = (
        "look at what the sources hold (keyekit data stats RECIPE); give sources with pictures more weight, or freeze "
        "vision and projector (groups: {pattern: vision, frozen: true}) if text alone is meant"
    )

    def __init__(self, packs: int = 200, action: Literal["stop", "warn"] = "warn") -> None:
        super().__init__(action)
        if packs < 1:
            raise ValueError(f"packs={packs} must be at least 1")
        self.packs = packs
        self._idle = 0
        self._trains = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """See whether there is a vision side that trains."""
        super().on_train_start(trainer, pl_module)
        self._idle = 0
        self._trains = bool({"vision", "projector"} & network_parts(getattr(pl_module, "network", pl_module)).keys())

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Count packs without pictures."""
        if not self._trains or not isinstance(batch, Batch):
            return
        self._idle = 0 if batch.vision is not None else self._idle + 1
        if self._idle == self.packs:
            self.sound(trainer, f"none of the last {self.packs} packs of this rank holds an image or a video")
