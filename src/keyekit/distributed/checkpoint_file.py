"""Checkpoints of a process of its own: one file, written beside its place, brought to the disk and renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from keyekit.distributed.whole import PARTIAL, problem_of, put_in_place
from keyekit.models.weights.source import CheckpointError

__all__ = ["WholeCheckpointIO"]


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's files, such that a kill or a full disk leaves the former file or the new one.

    Lightning itself serialises into memory, writes to the system's temporary folder and moves the file from there, which
    between two disks is a copy that can be cut. The runs of ``keyekit fit`` use this one unless the recipe names another
    among ``trainer.plugins``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a file, whole.

        Args:
            checkpoint: What Lightning keeps.
            path: Where to.
            storage_options: Must be ``None``.

        Raises:
            TypeError: If there are storage options.
            OSError: If the file cannot be written; a former one is untouched.
        """
        if storage_options is not None:
            raise TypeError(
                f"storage_options={storage_options!r}: files are written to a local folder, without options"
            )
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + PARTIAL)
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            put_in_place(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a file.

        Args:
            path: The file.
            map_location: Where tensors go.
            weights_only: Whether nothing but tensors and plain values may be read; true by default.

        Raises:
            CheckpointError: If it is cut, or a folder.
        """
        checkpoint = Path(path)
        if checkpoint.is_dir():
            raise CheckpointError(
                f"{path} is a distributed checkpoint: go on with the strategy that wrote it (trainer.strategy in the run's "
                "config.yaml; it runs on any number of ranks), or take its weights by `keyekit convert`"
            )
        problem = problem_of(checkpoint) if checkpoint.exists() else None
        if problem is not None:
            raise CheckpointError(
                f"{path} cannot be used: {problem}; --run.resume=true takes the last checkpoint that is whole"
            )
        return super().load_checkpoint(path, map_location, weights_only)
