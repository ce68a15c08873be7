"""The same training on different numbers of ranks, to see that it is the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from keyekit.batch import Batch
from keyekit.data.loader import StatefulLoader, rank_and_world
from keyekit.distributed.strategy import Sharded
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.routers import SigmoidBias
from keyekit.optim.schedules import WarmupCosine
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

__all__ = ["MODELS", "PACKS", "Packs", "Trained", "Variant", "distance", "on_some", "train", "train_all"]

PACKS = 4
"""Packs of an optimizer step, however many ranks share them."""

_SPARSE = partial(DSA, topk=6, num_indexer_heads=2, indexer_head_dim=16)
_MIXTURE = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24)

MODELS: dict[str, Mapping[str, Any]] = {
    "dense": {},
    "sparse": {"attention": _SPARSE, "feed_forward": _MIXTURE},
    "balanced": {"feed_forward": partial(_MIXTURE, router=partial(SigmoidBias, bias_rate=0.01))},
}
"""Tiny models by name: Keye-VL's structure, Keye-VL-2.0's, and one whose routers balance themselves."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to train.

    Args:
        model: A name of :data:`MODELS`.
        strategy: Arguments of :class:`~keyekit.distributed.strategy.Sharded`; ``None`` for a process of its own without it.
        dtype: Of the parameters.
        steps: Optimizer steps of the schedule.
    """

    model: str = "dense"
    strategy: Mapping[str, Any] | None = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    steps: int = 10


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came out.

    Args:
        losses: Of every step: the mean over its packs.
        tensors: All parameters and buffers at the end, whole.
    """

    losses: tuple[float, ...]
    tensors: dict[str, Tensor]


class Packs(StatefulLoader):
    """Forty different packs an epoch: two images, none, one at either place."""

    _GRIDS = (((2, 4), (2, 2)), (None, None), ((4, 2), None), (None, (2, 2)))

    def __len__(self) -> int:
        return 40 // rank_and_world(self.sharing)[1]

    @property
    def num_batches(self) -> int:
        """Packs of an epoch over all ranks."""
        return 40

    def batch(self, epoch: int, position: int) -> Batch:
        """Make the pack at a position."""
        rank, world = rank_and_world(self.sharing)
        number = position * world + rank
        grids = self._GRIDS[(number + number // PACKS) % PACKS]  # so that every rank is once without an image
        return tiny_batch(lengths=(12 + number % 3, 9 + number % 4), grids=grids, tail=3, seed=number)


class _Losses(lightning.Callback):
    """Adds up the losses of every step; Lightning has divided them by the number of packs."""

    def __init__(self) -> None:
        self.values: dict[int, float] = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.values[self.step] = self.values.get(self.step, 0.0) + outputs["loss"].item()


class _SaveAfter(lightning.Callback):
    """Saves a checkpoint after a step and stops."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: lightning.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def train(
    rank: int,
    world_size: int,
    variant: Variant,
    save: tuple[int, Path] | None = None,
    resume: Path | None = None,
) -> Trained:
    """Train in this process, which is one of ``world_size``.

    Args:
        rank: Its number.
        world_size: How many there are.
        variant: How.
        save: A step and a path: save a checkpoint there after it, and stop.
        resume: A checkpoint to go on from.
    """
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.manual_seed(0)
    network = tiny_vision_language_model(**MODELS[variant.model]).to(variant.dtype)
    task = LanguageModeling(network, learning_rate=3e-3, schedule=WarmupCosine(2), router_balance=0.05)
    strategy = "auto" if variant.strategy is None else Sharded(**variant.strategy)
    losses = _Losses()
    shared = 1 if variant.strategy is None else variant.strategy.get("sequence_parallel", 1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategy,
        max_steps=variant.steps,
        accumulate_grad_batches=PACKS * shared // world_size,
        gradient_clip_val=0.5,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses] if save is None else [losses, _SaveAfter(*save)],
    )
    trainer.fit(task, Packs(sharing=shared), ckpt_path=None if resume is None else str(resume), weights_only=False)
    means = torch.tensor([losses.values[step] for step in sorted(losses.values)], dtype=torch.float64)
    if world_size > 1:
        dist.all_reduce(means)
    return Trained(losses=tuple((means / world_size).tolist()), tensors=_whole(task.network))


def train_all(rank: int, world_size: int, jobs: Sequence[Callable[[int, int], Any]]) -> list[Any]:
    """Call several jobs ``(rank, world_size)`` one after the other: starting processes costs more than they do."""
    return [job(rank, world_size) for job in jobs]


def on_some(rank: int, world_size: int, ranks: int, jobs: Sequence[Callable[[int, int], Any]]) -> list[Any] | None:
    """Call jobs ``(rank, ranks)`` in the first few processes as if there were no others, while those wait.

    Do this before anything else: torch remembers meshes, and those of a group that is gone are of no use.

    Args:
        rank: Number of this process.
        world_size: Number of all.
        ranks: How many take part.
        jobs: What they do.

    Returns:
        Their results, or ``None`` in a process that waited.
    """
    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(folder)
    _regroup(rank, ranks, Path(folder[0]) / "some")
    results = train_all(rank, ranks, jobs) if rank < ranks else None
    _regroup(rank, world_size, Path(folder[0]) / "all")
    return results


def _regroup(rank: int, world_size: int, meeting_place: Path) -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank < world_size:
        store = dist.FileStore(str(meeting_place), world_size)
        dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store)


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest difference of a tensor, relative to its norm (to one where that is smaller)."""
    if one.keys() != other.keys():
        raise ValueError(f"different tensors: {sorted(one.keys() ^ other.keys())}")
    return max(
        ((other[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=1.0)).item()
        for name, tensor in one.items()
    )


def _whole(network: torch.nn.Module) -> dict[str, Tensor]:
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in network.state_dict().items()
    }
