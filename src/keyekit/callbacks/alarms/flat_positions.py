"""Positions that do not tell where in a picture a token is."""

from __future__ import annotations

from typing import Any, Literal

import lightning

from keyekit.batch import Batch
from keyekit.callbacks.alarms.base import Alarm

__all__ = ["FlatPositions"]


class FlatPositions(Alarm):
    """Sounds when all vision tokens of a pack have the same position on the time, height and width axes.

    Args:
        action: ``stop`` ends the run, ``warn`` says once what is wrong.
    """

    meaning = (
        "pictures are read as lines of text: the loss still falls, but the model cannot learn where in a picture "
        "something is (Keye-VL 8B sheet 2.3 counts time, height and width apart)"
    )
    remedy = (
        "make the positions of a batch with keyekit.nn.rope.positions.multimodal_positions; data that was prepared "
        "without them has to be prepared again"
    )

    def __init__(self, action: Literal["stop", "warn"] = "stop") -> None:
        super().__init__(action)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Look at the positions of vision tokens."""
        if not self.is_due(trainer) or not isinstance(batch, Batch) or batch.vision is None:
            return
        index = batch.vision_index
        if batch.part is not None:
            index = index[index < len(batch.tokens)]  # the other tokens of a picture are another rank's
        if len(index) <= len(batch.vision.grids):
            return  # perhaps no picture has more than one token here, and a single one has equal positions rightly
        time, height, width = batch.positions[:, index]
        if bool(((time == height) & (time == width)).all()):
            self.sound(trainer, f"the {len(index)} vision tokens of the pack have equal positions on all three axes")
