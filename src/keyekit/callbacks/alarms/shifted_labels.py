"""Labels that are not the next token."""

from __future__ import annotations

from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keyekit.batch import IGNORED_LABEL, Batch
from keyekit.callbacks.alarms.base import Alarm

__all__ = ["ShiftedLabels"]

_AWAY = {0: "the token at the same place", 2: "the token after the next"}


class ShiftedLabels(Alarm):
    """Sounds when the labels that the objective gets are some other token than the next one.

    Labels are shifted once, by the packer. Shifted again by a task or a loss that shifts by itself, they ask for the token
    after the next; not shifted at all, for the one that the model sees. Both can be read from the labels and the tokens,
    without the model: each label is compared with the tokens at its place, one later and two later. Texts that repeat one
    token agree with all three and are no fault.

    Args:
        action: ``stop`` ends the run, ``warn`` says once what is wrong.
    """

    meaning = (
        "the model learns to copy its input, with a loss that falls fast to nothing, or to leave out every second "
        "token; either way it cannot write text"
    )
    remedy = (
        "labels are shifted in one place, keyekit.data.packing: hand them to the objective as they are, with the "
        "hidden states at the same places; an objective of your own must not shift"
    )

    def __init__(self, action: Literal["stop", "warn"] = "stop") -> None:
        super().__init__(action)
        self._hook: RemovableHandle | None = None
        self._trainer: lightning.Trainer | None = None
        self._batch: Batch | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen to the objective, if the task has one."""
        super().on_train_start(trainer, pl_module)
        objective = getattr(pl_module, "objective", None)
        self._trainer = trainer
        if isinstance(objective, nn.Module):
            self._hook = objective.register_forward_pre_hook(self._called)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Look at the labels of the pack, and remember it for the objective's."""
        self._batch = batch if isinstance(batch, Batch) and batch.num_targets and self.is_due(trainer) else None
        if self._batch is not None:
            self._look(trainer, self._batch.labels, "of the pack")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the pack go."""
        self._batch = None

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen no longer."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._trainer = self._batch = None

    def _called(self, objective: nn.Module, arguments: tuple[Any, ...]) -> None:
        labels = arguments[2] if len(arguments) > 2 else None
        if self._batch is None or not isinstance(labels, Tensor) or labels is self._batch.labels:
            return
        if labels.ndim == 1 and labels.dtype == torch.int64:
            assert self._trainer is not None
            self._look(self._trainer, labels, "that the objective gets")

    def _look(self, trainer: lightning.Trainer, labels: Tensor, which: str) -> None:
        assert self._batch is not None
        here, following, after, compared = _agreements(labels, self._batch.tokens)
        away, most = max(((0, here), (2, after)), key=lambda pair: pair[1])
        if most > following:
            self.sound(
                trainer,
                f"{most} of {compared} labels {which} are {_AWAY[away]}, and only {following} are the next token",
            )


def _agreements(labels: Tensor, tokens: Tensor) -> list[int]:
    """How many labels are the token at their place, one and two later, and how many could be; waits for the device once."""
    length = min(len(labels), len(tokens)) - 2
    if length < 1:
        return [0, 0, 0, 0]
    labels = labels[:length]
    labelled = labels != IGNORED_LABEL
    counts = [(labelled & (labels == tokens[away : away + length])).sum() for away in range(3)]
    return torch.stack([*counts, labelled.sum()]).tolist()
