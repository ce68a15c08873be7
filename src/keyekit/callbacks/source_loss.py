"""Loss by source of a mixture."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keyekit.batch import IGNORED_LABEL, Batch, SampleInfo

__all__ = ["SourceLoss"]


class SourceLoss(lightning.Callback):
    """Log the mean loss of each source of a mixture beside that of all, at the steps that the trainer logs.

    Logs ``train/loss_of/<source>`` and ``train/targets_of/<source>`` of the packs of this rank: ranks may hold different
    sources, so nothing is averaged over them. The source of a sample is ``meta["source"]``, which the loader of a mixture sets;
    samples without one count by their task. The objective is evaluated once more on the same hidden states for each
    source, without gradients; the network is not.
    """

    def __init__(self) -> None:
        self._batch: Batch | None = None
        self._hook: RemovableHandle | None = None
        self._module: Any = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen to the objective.

        Raises:
            TypeError: If the task has no objective that could be listened to.
        """
        objective = getattr(pl_module, "objective", None)
        if not isinstance(objective, nn.Module):
            raise TypeError(f"SourceLoss listens to the objective of a task, and {type(pl_module).__name__} has none")
        self._module = pl_module
        self._hook = objective.register_forward_hook(self._measure)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Remember the pack if its step will be logged."""
        is_logged = (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # pyright: ignore[reportAttributeAccessIssue]
        self._batch = batch if is_logged and batch.samples else None

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen no longer."""
        if self._hook is not None:
            self._hook.remove()
        self._batch = self._hook = self._module = None

    @torch.no_grad()
    def _measure(self, objective: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        batch, self._batch = self._batch, None  # the objective is called again below
        if batch is None:
            return
        hidden, weight, labels, _ = arguments
        for source, samples in sorted(_by_source(batch).items()):
            own = torch.full_like(labels, IGNORED_LABEL)
            for sample in samples:
                own[sample.start : sample.stop] = labels[sample.start : sample.stop]
            targets = int((own != IGNORED_LABEL).sum())  # synchronises, at logged steps alone
            if targets:
                loss = objective(hidden, weight, own, targets) / targets
                self._module.log(f"train/loss_of/{source}", loss, batch_size=targets)
            self._module.log(f"train/targets_of/{source}", float(targets), batch_size=1)


def _by_source(batch: Batch) -> dict[str, list[SampleInfo]]:
    found: dict[str, list[SampleInfo]] = {}
    for sample in batch.samples:
        found.setdefault(str(sample.meta.get("source", sample.task)), []).append(sample)
    return found
