"""Expert parallelism: every rank holds a slice of the experts, and tokens travel to the ranks whose experts they visit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from keyekit.distributed.collectives import exchange_rows
from keyekit.distributed.part_plan import RankError
from keyekit.nn.moe.base import Routing
from keyekit.nn.moe.experts import Experts
from keyekit.nn.moe.visits import Visits, sort_visits

__all__ = ["ExpertParallel", "install_expert_parallel"]


class ExpertParallel:
    """A :class:`~keyekit.nn.moe.dispatch.Dispatcher` that sends visits to the rank that owns the expert; no visit is dropped.

    Ranks tell each other how many visits each expert gets, then exchange exactly these rows, and the outputs travel back.
    Routing weights stay at home and are applied there. The host waits for the device once a call, for the number of rows that
    each rank sends and receives; the backward pass knows it already.

    Args:
        num_experts: Experts E of the layer, on all ranks together.
        group: The ranks; rank ``r`` owns the ``r``-th of equal slices of the experts.
    """

    def __init__(self, num_experts: int, group: dist.ProcessGroup) -> None:
        self.num_experts = num_experts
        self.group = group
        self.ranks = dist.get_world_size(group)

    def __call__(self, hidden: Tensor, routing: Routing, compute: Callable[[Tensor, Routing], Tensor]) -> Tensor:
        """Weighted sum ``[T, D]`` of what the experts make of ``hidden [T, D]``; see the protocol."""
        visits = sort_visits(routing, self.num_experts)
        leaving = visits.counts.view(self.ranks, -1)
        arriving = exchange_rows(leaving, [1] * self.ranks, [1] * self.ranks, self.group)  # [ranks, experts here]
        send, receive = torch.stack([leaving.sum(dim=1), arriving.sum(dim=1)]).tolist()  # the one wait
        rows = exchange_rows(hidden[visits.tokens], send, receive, self.group)
        made = self._compute(rows, arriving, routing, compute)
        return _combine(exchange_rows(made, receive, send, self.group), visits, routing)

    def _compute(
        self, rows: Tensor, arriving: Tensor, routing: Routing, compute: Callable[[Tensor, Routing], Tensor]
    ) -> Tensor:
        """Outputs ``[R, D]`` of the experts here for the ``rows [R, D]`` that arrived, sorted by rank, then by expert."""
        count = rows.shape[0]
        here = torch.arange(arriving.shape[1], device=rows.device).repeat(self.ranks)
        experts = here.repeat_interleave(arriving.flatten(), output_size=count)
        if not count:  # a blank row, so that the experts get a gradient (zero) on every rank
            rows, experts = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]), here[:1]
        single = replace(
            routing,
            weights=torch.ones(len(rows), 1, dtype=routing.weights.dtype, device=rows.device),
            experts=experts[:, None],
            num_visits=None,
        )
        return compute(rows, single)[:count]


def install_expert_parallel(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the experts of every mixture among the ranks of ``mesh``, in place; call it before FSDP.

    Each stack of expert matrices becomes a ``DTensor`` of the whole shape, of which a rank keeps its slice: ``Shard(0)`` over
    the mesh. Norms, checkpoints and exports see the whole tensor; FSDP may shard the slices over the other dimensions of the
    mesh that this one was taken from. All ranks must hold the same weights, or none yet (the meta device).

    A rank's gradient of its experts is the sum over the losses of all ranks of the mesh.

    Args:
        network: Has mixtures of experts. With one rank nothing is changed.
        mesh: One dimension.

    Raises:
        RankError: If there is no mixture, the mesh has more dimensions, or the ranks do not divide the experts.
    """
    if mesh.ndim != 1:
        raise RankError(f"experts are divided over a mesh of one dimension, this one has {mesh.ndim}")
    layers = {name: module for name, module in network.named_modules() if isinstance(module, Experts)}
    if not layers:
        raise RankError("the network has no mixture of experts to divide: leave out expert parallelism")
    for name, experts in layers.items():
        if experts.num_experts % mesh.size():
            raise RankError(
                f"{name} has {experts.num_experts} experts, which {mesh.size()} ranks do not divide: "
                f"choose a degree of expert parallelism that divides {experts.num_experts}"
            )
    if mesh.size() == 1:
        return
    for experts in layers.values():
        experts.dispatcher = ExpertParallel(experts.num_experts, mesh.get_group())
        experts.gate_up_proj = _own_slice(experts.gate_up_proj, mesh)
        experts.down_proj = _own_slice(experts.down_proj, mesh)


def _own_slice(matrices: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    """This rank's slice of ``matrices [E, …]``, in memory of its own."""
    own = matrices.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
    return nn.Parameter(DTensor.from_local(own, mesh, [Shard(0)], run_check=False), matrices.requires_grad)


def _combine(made: Tensor, visits: Visits, routing: Routing) -> Tensor:
    """``[T, D]`` weighted sums over the visits of each token, in a fixed order."""
    weights = routing.weights.flatten()[visits.order, None].to(made.dtype)
    slots = made.new_zeros(routing.experts.numel(), made.shape[1]).index_copy(0, visits.order, made * weights)
    return slots.view(*routing.experts.shape, made.shape[1]).sum(dim=1)
