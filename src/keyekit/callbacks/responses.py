"""The report on the shape of answers: whether they are well-formed, whether they think, and how long they are."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import lightning
import torch

from keyekit.callbacks.answers import conditions_of
from keyekit.data.responses import parse_response
from keyekit.data.sample import Sample
from keyekit.metrics.answers import Prediction
from keyekit.rewards.formats import ResponseFormat

__all__ = ["ResponseReport"]

_NAMES = ("well_formed", "thinks", "tokens")


class ResponseReport(lightning.Callback):
    """Says of the generated answers of each task which share is well-formed, which share thinks, and how many tokens they have.

    Of a test with open eyes it logs ``response/<task>/well_formed``, ``response/<task>/thinks`` and ``response/<task>/tokens``,
    of a validation the same behind ``val/``. Steps hand over their answers as ``{"predictions": list[Prediction]}``.

    Args:
        mode: What well-formed means; see :class:`~keyekit.rewards.formats.ResponseFormat`.
    """

    def __init__(self, mode: str = "any") -> None:
        self.format = ResponseFormat(mode)
        self._sums: dict[str, list[float]] = {}

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Forget earlier answers."""
        self._sums = defaultdict(lambda: [0.0] * 4)

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Forget earlier answers."""
        self._sums = defaultdict(lambda: [0.0] * 4)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at the answers to a pack of prompts."""
        self._add(trainer, outputs)

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at the answers to a pack of prompts, unless the pictures are hidden."""
        if conditions_of(trainer)[dataloader_idx] == "open":
            self._add(trainer, outputs)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log the shares."""
        self._log(trainer, pl_module, "val/")

    def on_test_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Log the shares."""
        self._log(trainer, pl_module, "")

    def _add(self, trainer: lightning.Trainer, outputs: Any) -> None:
        if not isinstance(outputs, dict) or "predictions" not in outputs:
            return  # this task generates no answers
        tokenizer = trainer.datamodule.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        for prediction in outputs["predictions"]:
            sums = self._sums[prediction.info.task]
            length = len(tokenizer.encode(prediction.text, add_special_tokens=False))
            for place, value in enumerate((*self._shape(prediction), float(length), 1.0)):
                sums[place] += value

    def _shape(self, prediction: Prediction) -> tuple[float, float]:
        info, response = prediction.info, parse_response(prediction.text)
        sample = Sample(id=info.id, task=info.task, messages=(), meta=dict(info.meta))
        thinks = response is not None and response.thought is not None
        return self.format.outcome(sample, prediction.text).value, float(thinks)

    def _log(self, trainer: lightning.Trainer, pl_module: Any, prefix: str) -> None:
        everyone: list[Any] = [dict(self._sums)]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, dict(self._sums))
        for task in sorted({task for sums in everyone for task in sums}):
            rows = [sums[task] for sums in everyone if task in sums]
            *totals, count = (sum(column) for column in zip(*rows, strict=True))
            for name, total in zip(_NAMES, totals, strict=True):
                pl_module.log(f"{prefix}response/{task}/{name}", total / count)
