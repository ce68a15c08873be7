"""Gradient norms of the parts of a network."""

from __future__ import annotations

from typing import Any

import lightning
from torch import nn

from keyekit.callbacks.logged_steps import is_logged_step
from keyekit.optim.gradient_norms import gradient_norms, network_parts

__all__ = ["GradientNorms"]


class GradientNorms(lightning.Callback):
    """Log the norm of the gradient of each part that trains, before it is clipped, at the steps that the trainer logs.

    Logs ``gradient/<part>`` for the vision tower, the projector, the decoder, and of the decoder by themselves the indexers
    and the routers. Weights that are spread over ranks are summed over them.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[nn.Parameter]] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Find the parts."""
        self._parts = network_parts(getattr(pl_module, "network", pl_module))

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Measure if the step is logged."""
        if is_logged_step(trainer):
            norms = gradient_norms(self._parts)
            pl_module.log_dict({f"gradient/{part}": norm for part, norm in norms.items()}, batch_size=1)
