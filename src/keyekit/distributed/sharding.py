"""FSDP2 over a network, block by block, each part by its own plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.utils._pytree import register_dataclass
from torch.utils.checkpoint import checkpoint

from keyekit.distributed.mesh import RankGrid
from keyekit.distributed.part_plan import PartPlan, RankError
from keyekit.models.decoder import Decoder, DecoderOutput
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.attention.base import AttentionOutput
from keyekit.nn.moe.base import FeedForwardOutput, RouterStatistics, Routing, SequenceStatistics
from keyekit.nn.moe.dispatch import Dispatcher
from keyekit.nn.moe.experts import Experts

__all__ = ["blocks_of", "shard_network"]

for _output in (AttentionOutput, DecoderOutput, FeedForwardOutput, Routing, RouterStatistics, SequenceStatistics):
    # FSDP2 gathers a block for the backward pass when a gradient reaches one of its outputs: it has to find them.
    register_dataclass(_output)


def shard_network(network: nn.Module, plan_of: Callable[[str], PartPlan], grid: RankGrid) -> None:
    """Shard every block, then what is left of each part, then what is left of the network.

    A part is a child of the network; its blocks are the entries of its lists of modules. The embedding of a decoder is a unit
    of its own; norm and output layer stay gathered between the forward and the backward pass, since the loss reads the output
    layer's weight outside the network.

    Args:
        network: On whatever device; parameters move to the mesh's, unless they are offloaded or on meta.
        plan_of: The plan of a part by its name.
        grid: The ranks.
    """
    for name, part in network.named_children():
        plan = plan_of(name)
        for block in blocks_of(part):
            if plan.activation_checkpointing:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            for experts in _divided_experts(block, grid):
                _shard_experts(experts, plan, grid)
            _shard(block, plan, grid)
        if isinstance(part, Decoder):
            if part.lm_head.weight is part.embed_tokens.weight:
                continue  # read before and after the decoder runs: both belong to the unit that is the network
            _shard(part.embed_tokens, plan, grid)
            _shard(part, plan, grid, keep_gathered=True)
        elif any(True for _ in part.parameters()):
            _shard(part, plan, grid)
    _shard(network, plan_of("decoder"), grid, keep_gathered=True)
    if isinstance(network, VisionLanguageModel):
        network.vision_is_shared = True


def blocks_of(part: nn.Module) -> Iterator[nn.Module]:
    """The entries of a part's outermost lists of modules: layers of a decoder, blocks of a vision tower."""
    for child in part.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks_of(child)


def _divided_experts(block: nn.Module, grid: RankGrid) -> list[Experts]:
    """The experts of a block, if each rank holds some of them alone."""
    if grid.expert_parallel == 1:
        return []
    return [module for module in block.modules() if isinstance(module, Experts)]


def _shard_experts(experts: Experts, plan: PartPlan, grid: RankGrid) -> None:
    """Shard experts that are divided among ranks over those ranks that hold the same ones, along their inner axes."""
    ranks = grid.expert_shards.size()
    for matrices in (experts.gate_up_proj, experts.down_proj):
        if matrices.shape[1] % ranks:
            raise RankError(
                f"experts of shape {list(matrices.shape[1:])} cannot be cut evenly among the {ranks} ranks that hold the same "
                f"ones: choose expert_parallel such that {grid.world_size} / expert_parallel divides {matrices.shape[1]}"
            )
    experts.dispatcher = partial(_with_mean_gradients, experts.dispatcher, grid.expert_parallel)
    _shard(experts, plan, grid, mesh=grid.expert_shards, placement=lambda parameter: Shard(1))


def _with_mean_gradients(
    dispatcher: Dispatcher,
    ranks: int,
    hidden: Tensor,
    routing: Routing,
    compute: Callable[[Tensor, Routing], Tensor],
) -> Tensor:
    """Dispatch such that the gradient of the experts is the mean over the ranks whose tokens they see.

    It arrives as the sum over these ranks, and FSDP2 divides by those among which it shards alone. What the tokens get back
    stays as it is; routing weights are applied at home and see nothing of this.
    """

    def scaled(rows: Tensor, visits: Routing) -> Tensor:
        made = compute(_scale_gradient(rows, float(ranks)), visits)
        return _scale_gradient(made, 1.0 / ranks)

    return dispatcher(hidden, routing, scaled)


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    scaled = _ScaleGradient.apply(x, factor)
    assert isinstance(scaled, Tensor)
    return scaled


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def _shard(
    module: nn.Module,
    plan: PartPlan,
    grid: RankGrid,
    *,
    mesh: DeviceMesh | None = None,
    placement: Callable[[nn.Parameter], Shard] | None = None,
    keep_gathered: bool = False,
) -> None:
    """Make a module one unit of FSDP2."""
    offload = CPUOffloadPolicy(pin_memory=grid.device_type != "cpu") if plan.offload else OffloadPolicy()
    unit = fully_shard(
        module,
        mesh=mesh or grid.shards(plan),
        reshard_after_forward=plan.reshard_after_forward and not keep_gathered,
        shard_placement_fn=placement,
        mp_policy=MixedPrecisionPolicy(param_dtype=plan.gathered_dtype, reduce_dtype=plan.reduced_dtype),
        offload_policy=offload,
    )
    # Gloo knows neither means nor scaled sums.
    unit.set_force_sum_reduction_for_comms(grid.device_type == "cpu")
