"""Pictures in the data from which nothing reaches the vision tower."""

from __future__ import annotations

from typing import Any, Literal

import lightning
import torch
from torch import nn

from keyekit.batch import Batch
from keyekit.callbacks.alarms.base import Alarm
from keyekit.optim.gradient_norms import gradient_norms, network_parts

__all__ = ["SilentVision"]


class SilentVision(Alarm):
    """Sounds when packs with pictures leave the vision tower or the projector without any gradient.

    Args:
        looks: Looks at steps with pictures, one after the other, at which the gradient is exactly zero or missing.
        action: ``stop`` ends the run, ``warn`` says once what is wrong.

    Raises:
        ValueError: If ``looks`` is not positive.
    """

    meaning = (
        "the answers are learnt from their text alone: features are cut off (detach, no_grad), overwritten, or never "
        "put in place of the placeholders"
    )
    remedy = (
        "follow the features through network.embed: the tower's output must require a gradient and must change the "
        "hidden states; freeze the part (groups: {pattern: vision, frozen: true}) if it is not to be trained"
    )

    def __init__(self, looks: int = 3, action: Literal["stop", "warn"] = "stop") -> None:
        super().__init__(action)
        if looks < 1:
            raise ValueError(f"looks={looks} must be at least 1")
        self.looks = looks
        self._parts: dict[str, list[nn.Parameter]] = {}
        self._silent: dict[str, int] = {}
        self._shown = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Find the vision side."""
        super().on_train_start(trainer, pl_module)
        parts = network_parts(getattr(pl_module, "network", pl_module))
        self._parts = {name: parts[name] for name in ("vision", "projector") if name in parts}
        self._silent = dict.fromkeys(self._parts, 0)
        self._shown = False

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note whether the optimizer step has pictures with something to learn."""
        if isinstance(batch, Batch):
            self._shown |= batch.vision is not None and batch.num_targets > 0

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Look at the gradients; all ranks take part, whatever their packs hold."""
        shown, self._shown = self._shown, False
        if not self._parts or not self.is_due(trainer):
            return
        norms = gradient_norms(self._parts)
        for part, norm in zip(norms, torch.stack(list(norms.values())).tolist(), strict=True):
            self._silent[part] = self._silent[part] + 1 if shown and norm == 0.0 else 0
            if self._silent[part] == self.looks:
                self.sound(
                    trainer, f"the {part} has no gradient, {self.looks} looks in a row, although there were pictures"
                )
