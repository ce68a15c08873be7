"""Load of the experts: a heat-map of layers and experts, and how even it is."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keyekit.callbacks.logged_steps import is_logged_step
from keyekit.models.decoder import DecoderOutput
from keyekit.nn.moe.base import Router

__all__ = ["ExpertLoad", "draw_load", "evenness"]

_LITTLE, _EVEN, _MUCH = np.array((40, 90, 180)), np.array((245, 245, 245)), np.array((190, 40, 40))
_WIDEST = 8.0
"""Loads are drawn from this part of the even load to this multiple of it."""


class ExpertLoad(lightning.Callback):
    """Log how the tokens of a step are shared among the experts, at the steps that the trainer logs, over all ranks.

    Logs, averaged over the mixture layers: ``experts/load_entropy`` and ``experts/probability_entropy``, the entropy of the
    shares of visits and of the mean routing probabilities over that of an even share (1 is even, 0 is one expert alone);
    ``experts/idle``, the share of experts that nobody visited; ``experts/largest``, the load of the busiest expert over the
    even load. With TensorBoard, ``experts/load`` is a picture with a row for each layer and a column for each expert: white
    is even, red more, blue less. A network without a mixture logs nothing.

    Args:
        image_every_n_steps: Draw the picture at the first logged step after so many; 0 draws none.
    """

    def __init__(self, image_every_n_steps: int = 100) -> None:
        if image_every_n_steps < 0:
            raise ValueError(f"image_every_n_steps={image_every_n_steps} must be at least 0")
        self.image_every_n_steps = image_every_n_steps
        self._hook: RemovableHandle | None = None
        self._due = False
        self._step = self._drawn = 0
        self._held: Tensor | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen to the network if it routes."""
        network: nn.Module = getattr(pl_module, "network", pl_module)
        if any(isinstance(module, Router) for module in network.modules()):
            self._hook = network.register_forward_hook(self._count)
        self._drawn = trainer.global_step - self.image_every_n_steps

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note whether the step is logged."""
        self._due, self._step = is_logged_step(trainer), trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the packs of the optimizer step made, once it is taken."""
        if self._held is not None and trainer.global_step > self._step:
            held, self._held = self._held, None
            self._log(trainer, trainer.strategy.reduce(held, reduce_op="sum") if trainer.world_size > 1 else held)  # pyright: ignore[reportArgumentType]

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen no longer."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._held = None

    @torch.no_grad()
    def _count(self, network: nn.Module, inputs: Any, output: Any) -> None:
        """Add up visits and probabilities on the device, ``[2, layers, experts]``."""
        if not self._due or not network.training or not isinstance(output, DecoderOutput) or not output.routing:
            return
        counts = torch.stack([layer.counts for layer in output.routing])
        probabilities = torch.stack([layer.probabilities.detach() for layer in output.routing])
        both = torch.stack([counts, probabilities.to(counts.dtype)])
        self._held = both if self._held is None else self._held + both

    def _log(self, trainer: lightning.Trainer, held: Any) -> None:
        counts, probabilities = held.double().cpu().numpy()
        even = counts.sum(axis=1, keepdims=True) / counts.shape[1]
        loads = counts / np.maximum(even, 1e-9)
        values = {
            "experts/load_entropy": evenness(counts),
            "experts/probability_entropy": evenness(probabilities),
            "experts/idle": float((counts == 0).mean()),
            "experts/largest": float(loads.max(axis=1).mean()),
        }
        due = self.image_every_n_steps and trainer.global_step - self._drawn >= self.image_every_n_steps
        self._drawn = trainer.global_step if due else self._drawn
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
            if due and isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                picture = draw_load(loads)
                logger.experiment.add_image("experts/load", picture, trainer.global_step, dataformats="HWC")


def evenness(amounts: np.ndarray) -> float:
    """Mean over rows of the entropy of their shares, over that of equal shares.

    Args:
        amounts: ``[layers, experts]``, 0 or more; a row of zeros counts as even.

    Example:
        >>> evenness(np.array([[2.0, 2.0], [4.0, 0.0]]))
        0.5
    """
    if amounts.shape[1] < 2:
        return 1.0
    totals = amounts.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, amounts / np.maximum(totals, 1e-30), 1 / amounts.shape[1])
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return float((-(shares * logs).sum(axis=1) / np.log(amounts.shape[1])).mean())


def draw_load(loads: np.ndarray, width: int = 768, row_height: int = 24) -> np.ndarray:
    """A heat-map ``[height, width, 3]`` uint8 of loads over the even load, on a logarithmic scale.

    Args:
        loads: ``[layers, experts]``; 1 is even.
        width: Pixels at least, as far as experts divide it.
        row_height: Pixels of a layer.
    """
    scale = np.log(np.clip(loads, 1 / _WIDEST, _WIDEST)) / np.log(_WIDEST)
    strength = np.abs(scale)[..., None]
    colours = _EVEN * (1 - strength) + np.where(scale[..., None] > 0, _MUCH, _LITTLE) * strength
    cell = max(width // loads.shape[1], 1)
    size = (loads.shape[1] * cell, loads.shape[0] * row_height)
    return np.asarray(Image.fromarray(colours.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
