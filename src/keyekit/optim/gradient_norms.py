"""Norms of gradients part by part, also of parameters that are spread over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from keyekit.nn.attention.indexer import LightningIndexer
from keyekit.nn.moe.base import Router

__all__ = ["gradient_norms", "network_parts"]


def network_parts(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by what one watches apart: first-level modules, indexers and routers.

    Args:
        network: Any network.

    Returns:
        ``vision``, ``projector``, ``decoder``, ``indexer``, ``router``, as far as there are any that train.
    """
    special: dict[int, str] = {}
    for module in network.modules():
        if isinstance(module, LightningIndexer | Router):
            name = "router" if isinstance(module, Router) else "indexer"
            special.update((id(parameter), name) for parameter in module.parameters())
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(special.get(id(parameter), name.partition(".")[0]), []).append(parameter)
    return parts


@torch.no_grad()
def gradient_norms(parts: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, Tensor]:
    """Euclidean norm of the gradient of each part, in float32, without waiting for the device.

    Parameters that are spread over ranks are summed over them, so all ranks have to call this with the same parts.

    Args:
        parts: Parameters by part; one without a gradient counts as zero.

    Returns:
        A scalar for each part.

    Raises:
        ValueError: If a gradient waits for a sum over ranks, whose norm is not known.
    """
    return {name: _squares(parameters).sqrt() for name, parameters in parts.items()}


def _squares(parameters: Sequence[nn.Parameter]) -> Tensor:
    total = torch.zeros((), device=_device(parameters))
    for group, members in _by_sharding(parameters).items():
        there = (_local(parameter.grad) for parameter in members if parameter.grad is not None)
        local = [gradient for gradient in there if gradient.numel()]  # a rank may have no row of a small tensor
        squares = torch.zeros_like(total)
        if local:
            squares = torch.stack(torch._foreach_norm(local, 2, torch.float32)).square().sum()
        for ranks in group:
            dist.all_reduce(squares, group=ranks)
        total = total + squares
    return total


def _by_sharding(parameters: Iterable[nn.Parameter]) -> dict[tuple[dist.ProcessGroup, ...], list[nn.Parameter]]:
    """Parameters by the groups of ranks that share them, in the same order on every rank."""
    found: dict[tuple[dist.ProcessGroup, ...], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups = ()
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            spread = [i for i, placement in enumerate(parameter.placements) if not isinstance(placement, Replicate)]
            groups = tuple(mesh.get_group(dimension) for dimension in spread)
        found.setdefault(groups, []).append(parameter)
    return found


def _local(gradient: Tensor) -> Tensor:
    if not isinstance(gradient, DTensor):
        return gradient
    if any(placement.is_partial() for placement in gradient.placements):
        raise ValueError(
            f"a gradient is placed as {gradient.placements}: reduce it over the ranks before asking for its norm"
        )
    return gradient.to_local()


def _device(parameters: Sequence[nn.Parameter]) -> torch.device:
    return parameters[0].device if parameters else torch.device("cpu")
