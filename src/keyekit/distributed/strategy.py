"""One strategy for every number of devices: FSDP2 by parts, with experts, sequences and vision work divided among ranks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from keyekit.distributed.checkpointing import ShardedCheckpoints
from keyekit.distributed.expert_parallel import install_expert_parallel
from keyekit.distributed.mesh import RankGrid
from keyekit.distributed.meta import materialize_shards
from keyekit.distributed.part_plan import PartPlan
from keyekit.distributed.sequence_parallel import install_sequence_parallel
from keyekit.distributed.sharding import shard_network
from keyekit.distributed.vision_balance import install_vision_balance

__all__ = ["Sharded"]


class Sharded(ModelParallelStrategy):
    """Train on any number of devices: parameters, gradients and optimizer states are sharded by FSDP2, each part by its plan.

    The same recipe gives the same losses and weights on any number of ranks, up to rounding, as long as the packs of an
    optimizer step are the same. One device works too, with nothing to share.

    Args:
        vision: Plan of the vision tower; fully sharded by default, as the others.
        projector: Plan of the projector.
        decoder: Plan of the decoder, and of every other part, such as a text tower.
        expert_parallel: Ranks that share one copy of the experts: each holds some of them, and tokens travel.
        sequence_parallel: Ranks that share one pack: each holds some of its tokens, and attention heads travel.
        balance_vision: Whether images travel to ranks with less vision work, and their features back.
        reduce_every_pack: Whether gradients are reduced after every accumulated pack, so that a rank holds shards alone.
            Without, they are reduced once a step, which saves traffic and costs memory for whole gradients.
        meta: Whether the network is built without memory and gets it when it is sharded, so that no process holds all of it.
            Its values then come from the task's ``init_from`` or from a checkpoint. Without, every process builds the whole
            network first, with the same values as in a run on one device.
        asynchronous_checkpoints: Whether training goes on while a checkpoint is written.
        process_group_backend: Communication library; by default NCCL on GPUs and Gloo on processors.
        timeout_minutes: Time after which a rank that does not answer ends the run.
    """

    def __init__(
        self,
        vision: PartPlan | None = None,
        projector: PartPlan | None = None,
        decoder: PartPlan | None = None,
        expert_parallel: int = 1,
        sequence_parallel: int = 1,
        balance_vision: bool = False,
        reduce_every_pack: bool = True,
        meta: bool = False,
        asynchronous_checkpoints: bool = True,
        process_group_backend: Literal["nccl", "gloo"] | None = None,
        timeout_minutes: float = 30.0,
    ) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timedelta(minutes=timeout_minutes))
        self.vision = vision or PartPlan()
        self.projector = projector or PartPlan()
        self.decoder = decoder or PartPlan()
        self.expert_parallel = expert_parallel
        self.sequence_parallel = sequence_parallel
        self.balance_vision = balance_vision
        self.reduce_every_pack = reduce_every_pack
        self.meta = meta
        self.checkpoints = ShardedCheckpoints(asynchronous=asynchronous_checkpoints)
        self._grid: RankGrid | None = None

    @property
    def grid(self) -> RankGrid:
        """The ranks, once they are known."""
        if self._grid is None:
            raise RuntimeError("the ranks are arranged when a fit, validation or test begins: ask later")
        return self._grid

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Which of the packs that are read at the same time this rank works on."""
        return {"num_replicas": self.grid.data_ranks, "rank": self.grid.data_rank(self.global_rank)}

    def plan_of(self, part: str) -> PartPlan:
        """The plan of a child of the network."""
        return {"vision": self.vision, "projector": self.projector}.get(part, self.decoder)

    def setup_environment(self) -> None:
        """Arrange the ranks, then let them meet.

        Raises:
            RankError: If a degree or a group does not divide the ranks.
        """
        grid = RankGrid(self.world_size, self.sequence_parallel, self.expert_parallel)
        for part in ("vision", "projector", "decoder"):
            grid.check(self.plan_of(part), part)
        self._setup_distributed()
        grid.connect(self.root_device.type)
        self._grid = grid
        self._device_mesh = grid.everyone

    def shard(self, network: nn.Module) -> None:
        """Spread a network over the ranks; nothing happens the second time."""
        if isinstance(network, FSDPModule):
            return
        if self.expert_parallel > 1:
            install_expert_parallel(network, self.grid.experts)
        if self.sequence_parallel > 1:
            install_sequence_parallel(network, self.grid.sequence)
        if self.balance_vision:
            install_vision_balance(network, self.grid.everyone)  # pyright: ignore[reportArgumentType]
        shard_network(network, self.plan_of, self.grid)

    def materialize(self, network: nn.Module) -> None:
        """Give a network that was sharded on meta its memory; values follow."""
        plans = {name: self.plan_of(name) for name in ("", *dict(network.named_children()))}
        host = torch.device("cpu")
        materialize_shards(network, lambda name: host if plans[name].offload else self.root_device)

    def model_to_device(self) -> None:
        """Move what is not sharded; shards are where their plan wants them."""
        assert self.model is not None
        everything = self.model._modules
        rest = {name: child for name, child in everything.items() if not isinstance(child, FSDPModule)}
        self.model._modules = rest
        try:
            super().model_to_device()
        finally:
            self.model._modules = everything

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Keep the gradients of a pack that is not the last of its step to this rank, if that is wanted."""
        network = getattr(self.lightning_module, "network", None)
        if self.reduce_every_pack or not isinstance(network, FSDPModule):
            yield
            return
        network.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            network.set_requires_gradient_sync(True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The network's shards by name, in place."""
        assert self.model is not None
        return self.checkpoints.network_state(self.model)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimizer's shards by the names of the parameters, in place."""
        assert self.model is not None
        return self.checkpoints.optimizer_state(self.model, optimizer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a folder that any number of ranks can go on from.

        Raises:
            TypeError: If there are storage options.
        """
        if storage_options is not None:
            raise TypeError(
                f"storage_options={storage_options!r}: shards are written to a local folder, without options"
            )
        self.checkpoints.save(checkpoint, Path(self.broadcast(filepath)))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Fill network and optimizers in place, and return the rest."""
        assert self.model is not None
        assert self.lightning_module is not None
        path = Path(self.broadcast(checkpoint_path))
        strict = self.lightning_module.strict_loading
        return self.checkpoints.load(path, self.model, self.optimizers, strict=strict)

    def teardown(self) -> None:
        """Wait for the checkpoint that is being written."""
        self.checkpoints.wait()
        super().teardown()


# `--trainer.strategy=Sharded` is a word to the parser, and Lightning looks words up here, in lower case.
StrategyRegistry.register("sharded", Sharded, description=Sharded.__doc__ or "", override=True)
