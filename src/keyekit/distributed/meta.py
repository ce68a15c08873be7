"""Memory and values for a network that was built on the meta device and sharded there: no process ever holds all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from keyekit.models.weights import LoadReport, load_weights
from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.load import compare
from keyekit.models.weights.names import official_name
from keyekit.models.weights.network import local_part
from keyekit.models.weights.source import CheckpointError
from keyekit.nn.norm import RMSNorm

__all__ = ["fill_shards", "is_on_meta", "materialize_shards"]


def is_on_meta(network: nn.Module) -> bool:
    """Whether any parameter has no memory yet."""
    return any(parameter.is_meta for parameter in network.parameters())


@torch.no_grad()
def materialize_shards(network: nn.Module, device_of: Callable[[str], torch.device]) -> None:
    """Give every shard memory, with no values yet: parameters are not numbers, so that none passes for one.

    Args:
        network: Sharded on meta.
        device_of: Where the shards of a part live, by the part's name; the network's own are asked for as ``""``.

    Raises:
        CheckpointError: If the network has a buffer whose value no checkpoint holds.
    """
    for path, module in network.named_modules():
        unsaved = [name for name in module._non_persistent_buffers_set if getattr(module, name).is_meta]
        if unsaved:
            raise CheckpointError(
                f"{path}.{unsaved[0]} is a buffer that no checkpoint holds: build the network with memory (meta: false)"
            )
    for name, part in network.named_children():
        part.to_empty(device=device_of(name))
    network.to_empty(device=device_of(""), recurse=False)
    for parameter in network.parameters():
        parameter.fill_(float("nan"))


@torch.no_grad()
def fill_shards(network: nn.Module, folder: Path | str, seed: int = 0) -> LoadReport:
    """Load weights, and draw those of decoder and projector that the folder lacks: new indexers, a projector to be aligned.

    What is drawn depends on the seed and the tensor's name alone, so it is the same on any number of ranks.

    Args:
        network: Has memory.
        folder: With weights.
        seed: Of what is drawn.

    Raises:
        CheckpointError: If a tensor of another part is missing, or the folder is of another model.
    """
    _draw(network, compare(network, WeightFolder(folder)).missing, seed)
    return load_weights(network, folder)


def _draw(network: nn.Module, names: Iterable[str], seed: int) -> None:
    wanted = set(names)
    for path, module in network.named_modules():
        for own, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            name = official_name(f"{path}.{own}" if path else own)
            if name not in wanted:
                continue
            # Whole, one tensor at a time, so that every rank draws the same.
            whole = _drawn(path, module, own, tensor, name, seed)
            part = local_part(name, tensor)
            for axis, (start, length) in enumerate(zip(part.offset, part.tensor.shape, strict=True)):
                whole = whole.narrow(axis, start, length)
            part.tensor.copy_(whole)


def _drawn(path: str, module: nn.Module, own: str, tensor: torch.Tensor, name: str, seed: int) -> torch.Tensor:
    """Values like those that the part draws for itself when it has memory."""
    whole = torch.zeros(tensor.shape, dtype=torch.float32)
    if isinstance(module, RMSNorm | nn.LayerNorm):
        return whole.fill_(float(own == "weight"))
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if path.startswith("decoder."):  # Keye-VL 8B sheet 1.2, initializer_range
        return whole.normal_(std=0.02, generator=generator) if tensor.ndim >= 2 else whole
    if path.startswith("projector.") and isinstance(module, nn.Linear):  # torch's own for a layer of this width
        bound = module.in_features**-0.5
        return whole.uniform_(-bound, bound, generator=generator)
    raise CheckpointError(
        f"{name} is missing, and only tensors of decoder and projector can be drawn for a network that was built on meta: "
        "build it with memory (meta: false)"
    )
