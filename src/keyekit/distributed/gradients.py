"""The norm of gradients that are spread over ranks on different meshes, and clipping by it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

__all__ = ["clip_gradients", "gradient_norm"]


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor], device: torch.device | str) -> Tensor:
    """Euclidean norm of all gradients together, the same on every rank and on every number of ranks.

    Each rank adds up the squares of what it holds, divided by the number of ranks that hold the same; one sum over all ranks
    does the rest, on whatever meshes the parameters are. Ordinary tensors are the same everywhere and add themselves. Squares
    are added in float64.

    Args:
        parameters: Those without a gradient count nothing. All ranks pass the same.
        device: Where the ranks can talk to each other.

    Returns:
        Scalar float64.
    """
    shared, own = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
    spread = False
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            spread = True
            shared += _square(gradient.to_local(), device) / _holders(gradient)
        elif gradient is not None:
            own += _square(gradient, device)
    if spread:
        dist.all_reduce(shared)
    total = shared + own
    return total.sqrt()


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], maximum: float, device: torch.device | str) -> Tensor:
    """Scale all gradients down together until their norm is at most ``maximum``, without waiting for the device.

    Args:
        parameters: As for :func:`gradient_norm`.
        maximum: Largest norm.
        device: Where the ranks can talk to each other.

    Returns:
        The norm before, a scalar.
    """
    held = [parameter for parameter in parameters if parameter.grad is not None]
    norm = gradient_norm(held, device)
    factor = (maximum / (norm + 1e-6)).clamp(max=1.0)
    for parameter in held:
        gradient = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
        assert gradient is not None
        gradient.mul_(factor.to(gradient.device, gradient.dtype))
    return norm


def _holders(gradient: DTensor) -> int:
    """Ranks that hold the same part of a gradient."""
    count = 1
    for size, placement in zip(gradient.device_mesh.shape, gradient.placements, strict=True):
        count *= size if isinstance(placement, Replicate) else 1
    return count


def _square(values: Tensor, device: torch.device | str) -> Tensor:
    norm = torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32))
    return norm.to(device, torch.float64).square()
