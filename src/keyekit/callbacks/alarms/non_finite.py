"""A loss that is no number: which samples made it, and where to go back to."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keyekit.batch import IGNORED_LABEL, Batch, SampleInfo
from keyekit.callbacks.alarms.base import Alarm
from keyekit.callbacks.checkpoints import RunCheckpoints
from keyekit.distributed.whole import newest_whole

__all__ = ["NonFiniteLoss"]

_LISTED = 8


class NonFiniteLoss(Alarm):
    """Stops when the loss of a pack is NaN or infinite, and names the samples and the last good checkpoint.

    Samples of a pack do not see each other, so the loss is taken apart: those whose own loss is not finite are named, with
    their media. On a processor every loss is looked at before its gradient is computed, so the weights stay good. A GPU runs
    behind the host: there the loss of a step is looked at when it has arrived, a step or two later, without waiting. By then
    the weights may be spoilt; all samples of the pack are named, and ``wait`` finds the right one in a second run from the
    checkpoint. No checkpoint is written before the losses so far are known to be finite.

    Args:
        wait: Wait for the loss of every step, so that a GPU is stopped in time too. It costs speed.
    """

    meaning = (
        "a gradient of NaN spoils every weight it reaches in one step: from here on there is nothing to train. Usual "
        "causes are a broken sample, a learning rate that is too high, or 16-bit overflow"
    )
    remedy = (
        "look at the samples (keyekit data preview RECIPE) and repair or leave them out, then resume from the "
        "checkpoint; if there is nothing wrong with them, lower the learning rate or train in bf16-mixed instead of "
        "16-mixed"
    )

    def __init__(self, wait: bool = False) -> None:
        super().__init__("stop")
        self.wait = wait
        self._hook: RemovableHandle | None = None
        self._batch: Batch | None = None
        self._arguments: tuple[Any, ...] | None = None
        self._pending: deque[_Arriving] = deque()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Listen to the objective, if the task has one."""
        super().on_train_start(trainer, pl_module)
        self._pending.clear()
        objective = getattr(pl_module, "objective", None)
        if isinstance(objective, nn.Module):
            self._hook = objective.register_forward_pre_hook(self._remember)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Remember the pack, and look at losses that have arrived meanwhile."""
        self._look(trainer, pl_module, everything=False)
        self._batch = batch if isinstance(batch, Batch) else None

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Look at the loss, or send for it."""
        arguments, self._arguments = self._arguments, None
        samples = () if self._batch is None else self._batch.samples
        if loss.is_cuda and not self.wait:
            self._pending.append(_Arriving.of(loss.detach(), trainer.global_step + 1, samples))
            return
        value = float(loss.detach().sum())
        if not math.isfinite(value):
            blamed = self._blamed(pl_module, arguments)
            self.sound(trainer, _description(trainer, pl_module, value, trainer.global_step + 1, samples, blamed))

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Let no checkpoint follow a loss that is no number."""
        self._look(trainer, pl_module, everything=True)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Look at the last losses, and listen no longer."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = self._batch = self._arguments = None
        self._look(trainer, pl_module, everything=True)

    def _remember(self, objective: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self._batch is not None and torch.is_grad_enabled():
            self._arguments = arguments

    def _look(self, trainer: lightning.Trainer, pl_module: Any, everything: bool) -> None:
        while self._pending and (everything or self._pending[0].is_there()):
            arrived = self._pending.popleft()
            value = arrived.value()
            if not math.isfinite(value):
                text = _description(trainer, pl_module, value, arrived.step, arrived.samples, None)
                self.sound(trainer, text)

    @torch.no_grad()
    def _blamed(self, pl_module: Any, arguments: tuple[Any, ...] | None) -> list[SampleInfo] | None:
        """Samples whose own loss is not finite; ``None`` where the loss cannot be taken apart."""
        if self._batch is None or arguments is None or len(arguments) < 4:
            return None
        hidden, weight, labels, _ = arguments
        if len(labels) != len(self._batch.labels):
            return None
        found = []
        for sample in self._batch.samples:
            own = torch.full_like(labels, IGNORED_LABEL)
            own[sample.start : sample.stop] = labels[sample.start : sample.stop]
            loss = pl_module.objective(hidden, weight, own, int((own != IGNORED_LABEL).sum()))
            states = hidden[sample.start : sample.stop]
            if not torch.isfinite(loss) or not torch.isfinite(states).all():
                found.append(sample)
        return found


@dataclass(frozen=True, slots=True)
class _Arriving:
    """A loss on its way from a GPU."""

    host: Tensor
    event: torch.cuda.Event
    step: int
    samples: tuple[SampleInfo, ...]

    @classmethod
    def of(cls, loss: Tensor, step: int, samples: tuple[SampleInfo, ...]) -> _Arriving:
        host = torch.empty((), dtype=torch.float32, pin_memory=True)
        host.copy_(loss.float().sum(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return cls(host, event, step, samples)

    def is_there(self) -> bool:
        return self.event.query()

    def value(self) -> float:
        self.event.synchronize()
        return float(self.host)


def _description(
    trainer: lightning.Trainer,
    pl_module: Any,
    value: float,
    step: int,
    samples: tuple[SampleInfo, ...],
    blamed: list[SampleInfo] | None,
) -> str:
    spoilt = [name for name, p in pl_module.named_parameters() if not torch.isfinite(_local(p)).all()]
    parts = [f"the loss of step {step} is {value}"]
    if spoilt:
        parts.append(
            f"{len(spoilt)} weights are no numbers already (first {spoilt[0]}): an earlier step spoilt them, or this one"
        )
        parts.append(f"the pack held {_named(samples)}; a second run with NonFiniteLoss(wait=True) finds the one")
    elif blamed:
        parts.append(f"of the {len(samples)} samples of the pack these make it: {_named(blamed)}")
    elif blamed is not None:
        parts.append(
            "no sample's own prediction is at fault, so it is another term of the loss (routers, indexers); the pack held "
            + _named(samples)
        )
    else:
        parts.append(f"the pack held {_named(samples)}" if samples else "the batch does not name its samples")
    return "; ".join([*parts, _last_checkpoint(trainer)])


def _named(samples: tuple[SampleInfo, ...] | list[SampleInfo]) -> str:
    names = [f"{sample.id} ({', '.join(sample.media)})" if sample.media else sample.id for sample in samples[:_LISTED]]
    more = f" and {len(samples) - _LISTED} more" if len(samples) > _LISTED else ""
    return (", ".join(names) or "no sample") + more


def _last_checkpoint(trainer: lightning.Trainer) -> str:
    """The newest checkpoint; all that were written are good."""
    found: list[Path] = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RunCheckpoints):
            newest = newest_whole(Path(trainer.default_root_dir) / callback.folder, warn=False)
            found += [] if newest is None else [newest]
        else:  # Lightning's
            named = (getattr(callback, "last_model_path", ""), getattr(callback, "best_model_path", ""))
            found += [Path(path) for path in named if path and Path(path).exists()]
    if not found:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {max(found, key=lambda path: path.stat().st_mtime)}"


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter  # pyright: ignore[reportAttributeAccessIssue]
