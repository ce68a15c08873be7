"""Where the parameters of a network are: in its parts, in use or only shipped, and how many of them a token passes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.attention.indexer import LightningIndexer
from keyekit.nn.moe.base import Router
from keyekit.nn.moe.mixture import Experts

__all__ = ["PartCount", "count_parts", "count_unused", "largest_unit"]

_UNUSED_PARTS = {
    "packing_position_embedding": "packing position table",
    "vision_model.head.": "pooling head",
}
"""Parts of released checkpoints that no forward pass uses, by a piece of their tensors' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCount:
    """Parameters of one part of a network.

    Args:
        name: The part.
        shipped: Parameters in the released checkpoint.
        used: Parameters of the network.
        active: Those that take part in one text token; a vision token passes the vision tower and projector before.
    """

    name: str
    shipped: int
    used: int
    active: int


def count_parts(network: nn.Module, unused: Mapping[str, tuple[int, ...]] | None = None) -> tuple[PartCount, ...]:
    """Count every part; a network of a kind that is not known here is divided by its first-level modules.

    Args:
        network: Any network, on the meta device or elsewhere.
        unused: Names and shapes of tensors that ship but belong to no network.
    """
    counts: dict[str, list[int]] = {}
    for name, parameters, share in _owners(network):
        held = counts.setdefault(name, [0, 0])
        held[0] += parameters
        held[1] += int(parameters * share)
    parts = [PartCount(name=name, shipped=n, used=n, active=active) for name, (n, active) in counts.items()]
    return (*parts, *count_unused(unused or {}))


def count_unused(unused: Mapping[str, tuple[int, ...]]) -> tuple[PartCount, ...]:
    """Count what ships unused, by part."""
    totals: dict[str, int] = {}
    for tensor, shape in unused.items():
        part = next((part for piece, part in _UNUSED_PARTS.items() if piece in tensor), tensor)
        totals[part] = totals.get(part, 0) + math.prod(shape)
    return tuple(PartCount(name=name, shipped=number, used=0, active=0) for name, number in totals.items())


def largest_unit(network: nn.Module) -> int:
    """Parameters of the largest unit that full sharding gathers at a time: a layer of a stack, or a part outside of stacks."""
    stacked = [child for module in network.modules() if isinstance(module, nn.ModuleList) for child in module]
    inside = {id(inner) for child in stacked for inner in child.modules()}
    outside = [module for module in network.modules() if id(module) not in inside]
    own = [sum(p.numel() for p in module.parameters(recurse=False)) for module in outside]
    return max([sum(p.numel() for p in child.parameters()) for child in stacked] + own, default=0)


def _owners(network: nn.Module) -> list[tuple[str, int, float]]:
    """Part, parameters and share that is active, for every module that owns parameters; shared parameters count once."""
    seen: set[int] = set()
    found = []
    for path, module in network.named_modules():
        own = [p for p in module.parameters(recurse=False) if id(p) not in seen]
        seen.update(id(p) for p in own)
        if own:
            name, share = _part_of(network, path)
            found.append((name, sum(p.numel() for p in own), share))
    return found


def _part_of(network: nn.Module, path: str) -> tuple[str, float]:
    """The part to which a module belongs and the share of its parameters that a text token passes."""
    if not isinstance(network, VisionLanguageModel):
        return path.partition(".")[0] or type(network).__name__, 1.0
    first = path.split(".")[:2]
    if first[0] != "decoder":
        return ("vision tower" if first[0] == "vision" else first[0]), 0.0
    if first[-1] == "embed_tokens":
        tied = network.decoder.lm_head.weight is network.decoder.embed_tokens.weight
        return ("embedding and output layer", 1.0) if tied else ("embedding", 0.0)
    if first[-1] == "lm_head":
        return "output layer", 1.0
    return _layer_part(network, path)


def _layer_part(network: nn.Module, path: str) -> tuple[str, float]:
    chain = [network.get_submodule(path[:end]) for end in _prefixes(path)]
    if any(isinstance(module, LightningIndexer) for module in chain):
        return "indexers", 1.0
    if any(isinstance(module, Router) for module in chain):
        return "routers", 1.0
    for outer, inner in pairwise(chain):
        if isinstance(inner, Experts):
            router = next(module for module in outer.modules() if isinstance(module, Router))
            return "experts", router.spec.active_experts / router.spec.num_experts
    if ".self_attn." in path:
        return "attention", 1.0
    return ("feed-forward" if ".mlp." in path else "norms"), 1.0


def _prefixes(path: str) -> list[int]:
    return [i for i, letter in enumerate(path) if letter == "."] + [len(path)]
