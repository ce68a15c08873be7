"""Memory of the device and of the process while a run goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
import torch

from keyekit.callbacks.logged_steps import is_logged_step

__all__ = ["MemoryUse", "memory_gib"]

_STATM = Path("/proc/self/statm")


class MemoryUse(lightning.Callback):
    """Log memory in GiB at the steps that the trainer logs, of this rank.

    Logs ``memory/process`` (resident, where Linux tells it) and on a GPU ``memory/allocated`` at the end of the step,
    ``memory/peak`` since the run began, and ``memory/reserved``, which is what others see as taken: far more reserved than
    peak means fragmentation.
    """

    def __init__(self) -> None:
        self._due = False

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note whether the step is logged."""
        self._due = is_logged_step(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the counters; nothing waits for the device."""
        if self._due:
            values = {f"memory/{name}": value for name, value in memory_gib(pl_module.device).items()}
            pl_module.log_dict(values, batch_size=1)


def memory_gib(device: torch.device) -> dict[str, float]:
    """Memory in use now, in GiB; see :class:`MemoryUse`."""
    found = {}
    if _STATM.exists():
        found["process"] = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    if device.type == "cuda":
        found["allocated"] = torch.cuda.memory_allocated(device) / 2**30
        found["peak"] = torch.cuda.max_memory_allocated(device) / 2**30
        found["reserved"] = torch.cuda.memory_reserved(device) / 2**30
    return found
