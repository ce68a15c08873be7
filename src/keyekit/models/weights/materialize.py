"""Memory, and initial values where a checkpoint has none, for a network that was built on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from keyekit.models.weights.names import official_name
from keyekit.models.weights.source import CheckpointError
from keyekit.nn.norm import RMSNorm

__all__ = ["initialize", "materialize"]


def materialize(network: nn.Module, device: torch.device | str, dtype_of: Callable[[str, Tensor], torch.dtype]) -> None:
    """Give every tensor on the meta device uninitialised memory; shared tensors stay shared.

    Args:
        network: Tensors that have memory already are left alone.
        device: Where ordinary tensors go. Sharded ones belong to the device of their mesh.
        dtype_of: Chooses the dtype of an ordinary tensor by its official name.

    Raises:
        CheckpointError: If the network has a buffer that no checkpoint holds.
    """
    if any(isinstance(parameter, DTensor) and parameter.is_meta for parameter in network.parameters()):
        # FSDP keeps references to its shards, which it renews in this call alone.
        sharded = next(p for p in network.parameters() if isinstance(p, DTensor))
        network.to_empty(device=sharded.device_mesh.device_type)
        return
    made: dict[int, Tensor] = {}
    for path, module in network.named_modules():
        for name, tensor in [
            *module.named_parameters(recurse=False, remove_duplicate=False),
            *module.named_buffers(recurse=False),
        ]:
            if not tensor.is_meta:
                continue
            if name in module._non_persistent_buffers_set:
                raise CheckpointError(
                    f"{path}.{name} is a buffer that no checkpoint holds: build the network on the CPU instead of 'meta'"
                )
            if id(tensor) not in made:
                dtype = dtype_of(official_name(f"{path}.{name}" if path else name), tensor)
                empty = torch.empty(tensor.shape, dtype=dtype, device=device)
                trained = tensor.requires_grad
                made[id(tensor)] = nn.Parameter(empty, trained) if isinstance(tensor, nn.Parameter) else empty
            setattr(module, name, made[id(tensor)])


@torch.no_grad()
def initialize(network: nn.Module, names: Iterable[str]) -> None:
    """Draw initial values of decoder tensors that a checkpoint does not have, such as those of indexers.

    Args:
        network: Has memory for them.
        names: Their official names.

    Raises:
        CheckpointError: If one belongs to another part, whose own constructor has to draw it.
    """
    wanted = set(names)
    for path, module in network.named_modules():
        for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            name = official_name(f"{path}.{own}" if path else own)
            if name not in wanted:
                continue
            if not path.startswith("decoder."):
                raise CheckpointError(
                    f"{name} is missing, and only the decoder's tensors can be initialised after the network was built on "
                    "'meta': build it on the CPU, where every part draws its own initial values"
                )
            if tensor.ndim >= 2:  # Keye-VL 8B sheet 1.2, initializer_range
                nn.init.normal_(tensor, std=0.02)
            else:
                is_gain = isinstance(module, RMSNorm | nn.LayerNorm) and own == "weight"
                nn.init.constant_(tensor, 1.0 if is_gain else 0.0)
