"""What every alarm shares: when it looks, and how it tells what it found."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal

import lightning

from keyekit.callbacks.logged_steps import is_logged_step

__all__ = ["Alarm", "TrainingFault"]

_log = logging.getLogger(__name__)

FIRST_STEPS = 3
"""Optimizer steps at the start of a fit at which alarms look whatever the trainer logs: most faults are there at once."""


class TrainingFault(RuntimeError):
    """A run was stopped because training on would be in vain; the message says what is wrong, why it matters and what to do."""


class Alarm(lightning.Callback):
    """Base of the alarms: looks at the first steps of a fit and then at those that the trainer logs, so that it costs nothing.

    A sub-class says in ``meaning`` and ``remedy`` what its fault means and what to do, and calls :meth:`sound`.

    Args:
        action: ``stop`` ends the run with :class:`TrainingFault`; ``warn`` says once what is wrong and goes on.

    Raises:
        ValueError: If the action is none of these.
    """

    meaning: ClassVar[str] = ""
    """What the fault does to a run."""

    remedy: ClassVar[str] = ""
    """What to do about it."""

    def __init__(self, action: Literal["stop", "warn"] = "stop") -> None:
        if action not in ("stop", "warn"):
            raise ValueError(f"action={action!r}: choose 'stop' or 'warn'")
        self.action = action
        self._first_step = 0
        self._told = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Note where the fit begins."""
        self._first_step = trainer.global_step
        self._told = False

    def is_due(self, trainer: lightning.Trainer) -> bool:
        """Whether to look at the optimizer step that is under way; the same on all ranks."""
        return trainer.global_step < self._first_step + FIRST_STEPS or is_logged_step(trainer)

    def sound(self, trainer: lightning.Trainer, what: str) -> None:
        """Stop the run, or warn once.

        Args:
            trainer: The trainer, for step and rank.
            what: What was seen.

        Raises:
            TrainingFault: If the action is ``stop``.
        """
        rank = f", rank {trainer.global_rank}" if trainer.world_size > 1 else ""
        message = "\n".join(
            [
                f"{type(self).__name__} at step {trainer.global_step + 1}{rank}: {what}",
                f"  what it means: {self.meaning}",
                f"  what to do: {self.remedy}",
            ]
        )
        if self.action == "stop":
            raise TrainingFault(f"{message}\n  to train on regardless: give {type(self).__name__} action: warn")
        if not self._told:
            self._told = True
            _log.warning("%s", message)
