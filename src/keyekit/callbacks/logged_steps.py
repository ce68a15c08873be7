"""Which optimizer steps the trainer logs: there, and only there, the host may wait for the device."""

from __future__ import annotations

import lightning

__all__ = ["is_logged_step"]


def is_logged_step(trainer: lightning.Trainer) -> bool:
    """Whether the optimizer step that is under way will be logged.

    Args:
        trainer: Its ``global_step`` counts the steps that are done; with ``log_every_n_steps=0`` nothing is logged.
    """
    every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
    return bool(every) and (trainer.global_step + 1) % every == 0
