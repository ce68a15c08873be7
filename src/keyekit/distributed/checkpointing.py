"""Checkpoints of a run that is spread over ranks: written in the background, whole or not there, for any number of ranks."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from keyekit.distributed.whole import PARTIAL, mark_complete, problem_of, put_in_place
from keyekit.models.weights.source import CheckpointError

__all__ = ["PROGRESS", "ShardedCheckpoints"]

PROGRESS = "meta.pt"
"""File with everything but tensors of the network and the optimizers: loops, loaders, schedules, random states. Lightning's
own name for it."""

_WEIGHTS = "state_dict"
_LISTED = 6


class ShardedCheckpoints:
    """Saves and loads a strategy's checkpoints by ``torch.distributed.checkpoint``.

    A checkpoint is a folder: every rank's shards, :data:`PROGRESS`, and last of all a list of the files. It is written as
    ``<name>.partial`` and renamed when all of it is on the disk. Tensors are first copied to the host; then training goes on
    while a thread writes. There are never two at once: a save waits for the one before. The ranks agree over a gloo group of
    their own, so that nothing interferes with the collectives of training.

    A Lightning strategy that is derived from ``ModelParallelStrategy`` uses it so::

        self.checkpoints = ShardedCheckpoints()                       # in __init__

        def lightning_module_state_dict(self):                        # nothing is copied here
            return self.checkpoints.network_state(self.model)

        def optimizer_state(self, optimizer):
            return self.checkpoints.optimizer_state(self.model, optimizer)

        def save_checkpoint(self, checkpoint, filepath, storage_options=None):
            self.checkpoints.save(checkpoint, Path(self.broadcast(filepath)))

        def load_checkpoint(self, checkpoint_path, weights_only=None):
            path = Path(self.broadcast(checkpoint_path))
            strict = self.lightning_module.strict_loading
            return self.checkpoints.load(path, self.model, self.optimizers, strict=strict)

        def teardown(self):                                           # before the process group goes; also after an error
            self.checkpoints.wait()
            super().teardown()

    ``load_model_state_dict`` and ``load_optimizer_state_dict`` stay empty, as they are there. Random states come with the
    callback :class:`~keyekit.callbacks.RunCheckpoints`, which is also what saves.

    Args:
        asynchronous: Whether training goes on while a checkpoint is written.
    """

    def __init__(self, asynchronous: bool = True) -> None:
        self.asynchronous = asynchronous
        self._group: Any = None  # a group of all ranks, made by the first call of all of them
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[Path, Future[None]] | None = None

    @staticmethod
    def network_state(network: nn.Module) -> dict[str, Any]:
        """The network's tensors by name, in place; each rank has its shards."""
        return get_model_state_dict(network)

    @staticmethod
    def optimizer_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """An optimizer's state by the names of the network's parameters, in place.

        Args:
            network: The network that it trains.
            optimizer: The optimizer, or Lightning's wrapper of it.
        """
        return get_optimizer_state_dict(network, getattr(optimizer, "_optimizer", optimizer))

    def save(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Write a checkpoint; all ranks call it together.

        Args:
            checkpoint: What ``trainer.save_checkpoint`` hands to a strategy: ``state_dict``, ``optimizer_states``, and
                plain values.
            path: The folder to be.

        Raises:
            RuntimeError: If the save before this one failed on any rank; it names that rank's problem.
        """
        self._agree(self._problem_of_pending())
        progress = {key: value for key, value in checkpoint.items() if key not in (_WEIGHTS, "optimizer_states")}
        tensors = {_WEIGHTS: checkpoint[_WEIGHTS]}
        tensors |= {f"optimizer_{i}": state for i, state in enumerate(checkpoint.get("optimizer_states", []))}
        partial = path.with_name(path.name + PARTIAL)
        problem = None
        if _rank() == 0:
            try:
                _begin(partial, path, progress)
            except OSError as error:
                problem = f"{partial}: {error.strerror}"
        self._agree(problem)
        facts = {"step": checkpoint.get("global_step"), "ranks": _ranks()}
        if self.asynchronous:
            written = dcp.async_save(tensors, checkpoint_id=partial, process_group=self._own_group(), no_dist=_alone())
            self._pending = path, self._thread.submit(_finish, written, partial, path, facts)
        else:
            dcp.save(tensors, checkpoint_id=partial, process_group=self._own_group(), no_dist=_alone())
            _finish(None, partial, path, facts)
            self._agree(None)  # nobody goes on before it has its name

    def wait(self) -> None:
        """Wait for the checkpoint that is being written, on this rank.

        Raises:
            RuntimeError: If it could not be written.
        """
        problem = self._problem_of_pending()
        if problem is not None:
            raise RuntimeError(problem)

    def load(
        self, path: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = (), *, strict: bool = True
    ) -> dict[str, Any]:
        """Fill a network and optimizers of any sharding in place; all ranks call it together.

        Args:
            path: A folder that :meth:`save` wrote, on however many ranks.
            network: What :meth:`network_state` was asked of.
            optimizers: Those that were saved, in their order; none to load weights alone.
            strict: Whether a tensor of the network that the checkpoint lacks is an error.

        Returns:
            What was saved beside the tensors.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            CheckpointError: If it is not whole, or has other tensors than the network.
        """
        self.wait()
        if not path.exists():
            raise FileNotFoundError(2, "there is no such checkpoint", str(path))
        problem = problem_of(path) if path.is_dir() else "it is a file, of a run without sharding"
        if problem is not None:
            raise CheckpointError(f"{path} cannot be used: {problem}")
        plain = [getattr(optimizer, "_optimizer", optimizer) for optimizer in optimizers]
        state: dict[str, Any] = {_WEIGHTS: get_model_state_dict(network)}
        _compare(path, state[_WEIGHTS], strict)
        state |= {f"optimizer_{i}": get_optimizer_state_dict(network, optimizer) for i, optimizer in enumerate(plain)}
        dcp.load(state, checkpoint_id=path, process_group=self._own_group(), no_dist=_alone())
        set_model_state_dict(network, state[_WEIGHTS], options=StateDictOptions(strict=strict))
        for i, optimizer in enumerate(plain):
            set_optimizer_state_dict(network, optimizer, state[f"optimizer_{i}"])
        return torch.load(path / PROGRESS, map_location="cpu", weights_only=True)

    def _problem_of_pending(self) -> str | None:
        if self._pending is None:
            return None
        (path, future), self._pending = self._pending, None
        error = future.exception()
        return None if error is None else f"the checkpoint {path} could not be written: {error}"

    def _agree(self, problem: str | None) -> None:
        """Wait for all ranks; any problem becomes an error on each of them."""
        problems: list[str | None] = [problem]
        if not _alone():
            problems *= _ranks()
            dist.all_gather_object(problems, problem, group=self._own_group())
        told = [f"rank {rank}: {text}" for rank, text in enumerate(problems) if text is not None]
        if told:
            raise RuntimeError("; ".join(told))

    def _own_group(self) -> Any:
        if self._group is None and not _alone():
            self._group = dist.new_group(backend="gloo")
        return self._group


def _begin(partial: Path, path: Path, progress: dict[str, Any]) -> None:
    """Make the folder and write what is not sharded, as it is at this moment."""
    if path.is_file():
        path.unlink()
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    serialised = io.BytesIO()
    torch.save(progress, serialised)
    with (partial / PROGRESS).open("wb") as file:
        file.write(serialised.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def _finish(written: Any, partial: Path, path: Path, facts: dict[str, Any]) -> None:
    """Wait for all ranks' shards; the first rank then gives the folder its name."""
    if written is not None:
        getattr(written, "upload_completion", written).result()
    if _rank() == 0:  # the writers told the first rank that they are done, with their files on the disk
        mark_complete(partial, **facts)
        put_in_place(partial, path)


def _compare(path: Path, state: dict[str, Any], strict: bool) -> None:
    """Refuse other tensors with their names, before anything is read."""
    entries = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    stored = {
        key.removeprefix(f"{_WEIGHTS}."): tuple(entry.size)
        for key, entry in entries.items()
        if key.startswith(f"{_WEIGHTS}.") and isinstance(entry, TensorStorageMetadata)
    }
    wanted = {name: tuple(value.shape) for name, value in state.items() if isinstance(value, torch.Tensor)}
    missing = [name for name in wanted if name not in stored] if strict else []
    other = [
        f"{name} is {list(stored[name])} there and {list(shape)} here"
        for name, shape in wanted.items()
        if stored.get(name, shape) != shape
    ]
    if missing or other:
        told = [*other, *(f"{name} is not in it" for name in missing)]
        more = f" and {len(told) - _LISTED} more" if len(told) > _LISTED else ""
        raise CheckpointError(
            f"{path} is of another network: {'; '.join(told[:_LISTED])}{more}; go on with the recipe that it was saved under, "
            "or start a new run from the export (model.init_from)"
        )


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized())


def _rank() -> int:
    return 0 if _alone() else dist.get_rank()


def _ranks() -> int:
    return 1 if _alone() else dist.get_world_size()
