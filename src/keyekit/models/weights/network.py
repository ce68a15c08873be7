"""A network's tensors as the loader and the exporter see them: official names, ties, shards of this rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset  # what torch's own checkpoints use

from keyekit.models.weights.names import official_name
from keyekit.models.weights.source import CheckpointError, Stored

__all__ = ["LocalPart", "NetworkSource", "is_sharded", "local_part", "network_tensors", "tied_names"]


def network_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by official name, in order; one that has several names is there under the first."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[official_name(name)] = tensor
    return tensors


def tied_names(network: nn.Module) -> dict[str, str]:
    """Official names of shared tensors beyond the first, with that first name (tied embeddings)."""
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        original = first.setdefault(id(tensor), official_name(name))
        if original != official_name(name):
            tied[official_name(name)] = original
    return tied


def is_sharded(network: nn.Module) -> bool:
    """Whether parameters are spread over ranks."""
    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


@dataclass(frozen=True, slots=True)
class LocalPart:
    """What this rank holds of a tensor.

    Args:
        tensor: The values, in place.
        offset: Where they begin in the whole tensor.
    """

    tensor: Tensor
    offset: tuple[int, ...]


def local_part(name: str, tensor: Tensor) -> LocalPart:
    """This rank's part of a tensor, which is the whole of an ordinary one.

    Raises:
        CheckpointError: If the rank's part is no rectangle of the whole.
    """
    if not isinstance(tensor, DTensor):
        return LocalPart(tensor, (0,) * tensor.ndim)
    local = tensor.to_local()
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if tuple(shape) != tuple(local.shape):
        raise CheckpointError(
            f"{name} is placed as {tensor.placements} over the ranks, whose parts are no rectangles of the tensor: "
            "use Shard and Replicate"
        )
    return LocalPart(local, tuple(offset))


class NetworkSource:
    """The tensors of a network, gathered one at a time if they are spread over ranks.

    Every rank has to read the same tensors in the same order.

    Args:
        network: The network.
        dtype: Floating-point tensors are read in this dtype; their own by default.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None) -> None:
        self._named = network_tensors(network)
        self._dtype = dtype
        self._gathered: tuple[str, Tensor] | None = None
        self.tensors: Mapping[str, Stored] = {
            name: Stored(self._dtype_of(tensor), tuple(tensor.shape)) for name, tensor in self._named.items()
        }

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A region of a tensor."""
        if self._gathered is None or self._gathered[0] != name:
            self._gathered = None  # the one before goes first
            self._gathered = name, self._whole(self._named[name].detach())
        region = self._gathered[1]
        for axis, (start, length) in enumerate(zip(offset, shape, strict=True)):
            region = region.narrow(axis, start, length)
        return region.cpu().to(self.tensors[name].dtype)

    def where(self, name: str) -> str:
        """For messages."""
        return "the network"

    def _whole(self, tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            raise CheckpointError("the network is on the meta device and has no values to write: load weights first")
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def _dtype_of(self, tensor: Tensor) -> torch.dtype:
        return self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
