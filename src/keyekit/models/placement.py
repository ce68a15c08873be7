"""Where the parts of a network lie when each is spread over ranks in its own way, and what a rank then holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from keyekit.models.memory import Precision, StateMemory
from keyekit.nn.moe.experts import Experts

__all__ = ["Placement", "placed_state"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """How one part lies on the ranks.

    Args:
        shards: Ranks that share one copy of its weights, gradients and optimizer states; ``None`` for all ranks.
        recomputed: Whether its layers are computed again in the backward pass.
        offloaded: Whether its shards lie in the host's memory.
        gathered: Bytes of a number of a gathered layer; those of a weight by default.
    """

    shards: int | None = None
    recomputed: bool = False
    offloaded: bool = False
    gathered: int | None = None


def placed_state(
    network: nn.Module,
    placement_of: Callable[[str], Placement],
    precision: Precision,
    *,
    devices: int,
    expert_ranks: int = 1,
) -> tuple[StateMemory, float]:
    """Weights, gradients and optimizer states on one rank, part by part.

    Every part is gathered layer by layer, also one that lies whole on every rank, since it may compute in a narrower type. The
    experts of a layer are divided among ``expert_ranks`` before anything is gathered.

    Args:
        network: The network; parameters that need no gradient count as frozen.
        placement_of: Placement of a child by its name; of the network's own parameters by the empty name.
        precision: Bytes of the numbers.
        devices: Ranks.
        expert_ranks: Ranks that share one copy of the experts.

    Returns:
        Bytes on the device, and bytes in the host's memory.

    Example:
        >>> from keyekit.models.memory import PRECISIONS
        >>> held, host = placed_state(nn.Linear(3, 2), lambda part: Placement(), PRECISIONS["32-true"], devices=4)
        >>> held.weights, held.gradients, held.optimizer, held.gathered, host
        (8.0, 8.0, 16.0, 96.0, 0.0)
    """
    weights = gradients = optimizer = gathered = host = 0.0
    seen: set[int] = set()
    for name, parameters, units in _parts(network, expert_ranks):
        placement = placement_of(name)
        own = [p for p in parameters if id(p) not in seen]
        seen.update(map(id, own))
        shards = placement.shards or devices
        held = sum(p.numel() for p in own) / shards
        trained = sum(p.numel() for p in own if p.requires_grad) / shards
        bytes_held = (held * precision.weight, trained * precision.gradient, trained * precision.optimizer)
        if placement.offloaded:
            host += sum(bytes_held)
        else:
            weights, gradients, optimizer = (
                total + part for total, part in zip((weights, gradients, optimizer), bytes_held, strict=True)
            )
        # Two layers' weights and one layer's gradients are whole at a time, of one part at a time.
        gathered = max(gathered, 3.0 * max(units, default=0.0) * (placement.gathered or precision.weight))
    return StateMemory(weights=weights, gradients=gradients, optimizer=optimizer, gathered=gathered), host


def _parts(network: nn.Module, expert_ranks: int) -> Iterable[tuple[str, list[nn.Parameter], list[float]]]:
    """Name, parameters and sizes of the units that are gathered, of every child and of the network itself."""
    for name, child in network.named_children():
        yield name, list(child.parameters()), [_unit(unit, expert_ranks) for unit in _units(child)]
    own = list(network.parameters(recurse=False))
    yield "", own, [float(sum(p.numel() for p in own))]


def _units(part: nn.Module) -> list[nn.Module]:
    """Layers of stacks; where there are none, the part itself; and what owns parameters outside of stacks."""
    stacked = [child for module in part.modules() if isinstance(module, nn.ModuleList) for child in module]
    inside = {id(inner) for child in stacked for inner in child.modules()}
    outside = [m for m in part.modules() if id(m) not in inside and next(m.parameters(recurse=False), None) is not None]
    return stacked + outside if stacked else [part]


def _unit(unit: nn.Module, expert_ranks: int) -> float:
    experts = sum(p.numel() for m in unit.modules() if isinstance(m, Experts) for p in m.parameters(recurse=False))
    return sum(p.numel() for p in unit.parameters()) - experts + experts / expert_ranks
