"""Recall of the indexers on held-out packs while they learn."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from keyekit.nn.attention.dsa import DSA

__all__ = ["SelectionRecall"]


class SelectionRecall(lightning.Callback):
    """Measure on held-out packs how much of the dense attention each layer's indexer would keep.

    Logs ``val/dsa_recall/<layer>``: the attention held by the ``topk`` keys that the indexer selects, over what the best
    ``topk`` hold, for queries with more keys than that. Beside it stand ``val/dsa_recall_last/<layer>`` and
    ``val/dsa_recall_random/<layer>``, the same for the keys just before a query and for random keys: an indexer that knows
    less than the first has learnt a window at best. The attention is that of the present model. It is measured before the
    first step, every ``every_n_steps`` and after the last, on the first packs of the datamodule's validation loader, with or
    without validations.

    Args:
        every_n_steps: Optimizer steps between measurements.
        packs: Packs to measure on.
        rows: Queries of a pack to measure, each against all keys of the pack.
        seed: Seed of the random keys.
    """

    def __init__(self, every_n_steps: int = 50, packs: int = 1, rows: int = 256, seed: int = 0) -> None:
        if min(every_n_steps, packs, rows) < 1:
            raise ValueError(f"every_n_steps={every_n_steps}, packs={packs} and rows={rows} must be at least 1")
        self.every_n_steps = every_n_steps
        self.packs = packs
        self.rows = rows
        self.seed = seed
        self._batches: list[Any] = []
        self._measured = -1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Keep the packs and measure before anything is learnt."""
        self._measured = -1
        layers = _layers(pl_module.network)
        self._batches = list(islice(_held_out(trainer), self.packs)) if layers else []
        if not self._batches:
            missing = "attention layer that selects keys (DSA)" if not layers else "held-out pack"
            rank_zero_warn(f"SelectionRecall measures nothing: there is no {missing}")
        self._measure(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure if it is time."""
        if trainer.global_step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Measure what came out, and let the packs go."""
        self._measure(trainer, pl_module)
        self._batches = []

    @torch.no_grad()
    def _measure(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if not self._batches or trainer.global_step == self._measured:
            return  # gradients are accumulated: the step is still the same
        self._measured = trainer.global_step
        network, found = pl_module.network, {}
        training = network.training
        network.eval()
        generator = torch.Generator(pl_module.device).manual_seed(self.seed)
        hooks = [
            layer.register_forward_pre_hook(partial(_ask, found, index, self.rows, generator))
            for index, layer in _layers(network).items()
        ]
        for batch in self._batches:
            network(trainer.strategy.batch_to_device(batch, pl_module.device))
        for hook in hooks:
            hook.remove()
        network.train(training)
        self._log(trainer, {name: torch.stack(values).mean() for name, values in found.items()})

    def _log(self, trainer: lightning.Trainer, means: dict[str, Tensor]) -> None:
        values = {name: trainer.strategy.reduce(mean, reduce_op="mean") for name, mean in means.items()}
        trainer.callback_metrics.update(values)  # so that the run's summary has the last ones
        for logger in trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=trainer.global_step)


def _held_out(trainer: lightning.Trainer) -> Iterator[Any]:
    """Batches of the validation loader, or of several; none without a datamodule."""
    datamodule = getattr(trainer, "datamodule", None)
    loaders = () if datamodule is None else datamodule.val_dataloader()
    for loader in loaders if type(loaders) in (list, tuple) else (loaders,):
        yield from loader


def _layers(network: nn.Module) -> dict[int, DSA]:
    return {module.spec.layer: module for module in network.modules() if isinstance(module, DSA)}


def _ask(found: dict[str, list[Tensor]], index: int, rows: int, generator: torch.Generator, layer: DSA, inputs) -> None:
    """A hook: measures a layer on what it is about to get."""
    hidden, context = inputs
    for name, value in layer.recalls(hidden, context, rows, generator).items():
        suffix = "" if name == "indexer" else f"_{name}"
        found.setdefault(f"val/dsa_recall{suffix}/{index}", []).append(value)
