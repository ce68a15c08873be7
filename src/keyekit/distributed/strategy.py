"""One strategy for every number of devices: FSDP2 by parts, with experts, sequences and vision work divided among ranks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.fsdp import FSDPModule

from keyekit.distributed.mesh import RankGrid
from keyekit.distributed.part_plan import PartPlan
from keyekit.distributed.sharding import shard_network

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
            ValueError: If a degree or a group does not divide the ranks.
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
        shard_network(network, self.plan_of, self.grid)

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


# `--trainer.strategy=Sharded` is a word to the parser, and Lightning looks words up here, in lower case.
StrategyRegistry.register("sharded", Sharded, description=Sharded.__doc__ or "", override=True)
