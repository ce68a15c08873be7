"""What a model costs under one setting: parameters, operations, memory per rank, caches. Arithmetic on sizes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from keyekit.models.flops import Flops, forward_flops, training_flops
from keyekit.models.memory import (
    PRECISIONS,
    Activations,
    CacheBytes,
    StateMemory,
    activation_memory,
    cache_bytes,
    state_memory,
)
from keyekit.models.parameters import PartCount, count_parts, largest_unit
from keyekit.models.patterns import BlockPattern, NativePattern
from keyekit.models.placement import Placement, placed_state
from keyekit.models.sizes import NetworkSizes
from keyekit.models.vision_language import VisionLanguageModel

__all__ = ["Costs", "Plan", "Setting", "make_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How the model is trained.

    Args:
        devices: Ranks.
        sequence_length: Tokens of the one sample that fills a pack.
        vision_share: Share of vision tokens among them.
        frame_tokens: Tokens of an image or frame; 256 is the most that Keye-VL-2.0 gives a frame (its sheet 6.2).
        sharding: ``full`` divides weights, gradients and optimizer among the ranks, ``none`` repeats them.
        precision: One of :data:`~keyekit.models.memory.PRECISIONS`.
        parts: Placement of each part by name, instead of ``sharding``; a part without one takes that of ``decoder``.
        sequence_ranks: Ranks that share one pack, each with some of its tokens.
        expert_ranks: Ranks that share one copy of the experts.
        frozen_reference: Whether a frozen copy of the network is kept beside it.
    """

    devices: int = 1
    sequence_length: int = 8192
    vision_share: float = 0.5
    frame_tokens: int = 256
    sharding: Literal["full", "none"] = "full"
    precision: str = "bf16-mixed"
    parts: Mapping[str, Placement] | None = None
    sequence_ranks: int = 1
    expert_ranks: int = 1
    frozen_reference: bool = False

    def placement(self, part: str) -> Placement:
        """Placement of a part of the network; all of it lies as ``sharding`` says where there are no parts."""
        parts = self.parts or {}
        return parts.get(part, parts.get("decoder", Placement(shards=None if self.sharding == "full" else 1)))

    @property
    def frames(self) -> int:
        """Whole frames among the tokens."""
        return int(self.sequence_length * self.vision_share) // self.frame_tokens

    def grid(self, merge: int) -> tuple[int, int, int]:
        """``(frames, rows, columns)`` in patches; only the product of rows and columns matters."""
        return self.frames, merge, merge * self.frame_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What only a :class:`~keyekit.models.vision_language.VisionLanguageModel` lets us know.

    Args:
        forward: Operations of one forward pass over the sequence.
        training: Operations of forward and backward.
        activations: Bytes that autograd keeps.
        checkpointed: The same when every layer is recomputed.
        reference: The same without recomputation, when sparse attention runs through its PyTorch definition; ``None`` for a
            model that selects no keys.
        cache: Bytes of the caches per token.
        planned: Activations with the parts recomputed that the setting recomputes.
    """

    forward: Flops
    training: Flops
    activations: Activations
    checkpointed: Activations
    reference: Activations | None
    cache: CacheBytes
    planned: Activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that ``keyekit plan`` tells.

    Args:
        name: The model.
        setting: How it is trained.
        parts: Parameters by part.
        trainable: Parameters that are trained.
        state: Bytes of weights and their companions on one rank.
        host: Bytes of those that are offloaded to the host's memory.
        costs: Operations, activations and caches; ``None`` for a network of another kind.
        context: Tokens of the longest sequence, if known.
        notes: What is assumed.
    """

    name: str
    setting: Setting
    parts: tuple[PartCount, ...]
    trainable: int
    state: StateMemory
    host: float
    costs: Costs | None
    context: int | None
    notes: tuple[str, ...]

    @property
    def shipped(self) -> int:
        """Parameters in the released checkpoint."""
        return sum(part.shipped for part in self.parts)

    @property
    def used(self) -> int:
        """Parameters of the network."""
        return sum(part.used for part in self.parts)

    @property
    def active(self) -> int:
        """Parameters that take part in one text token."""
        return sum(part.active for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """Numbers alone: parameters in units, operations in FLOPs, memory in bytes."""
        found = asdict(self)
        found["parameters"] = {"shipped": self.shipped, "used": self.used, "active": self.active}
        found["state"]["total"] = self.state.total
        if self.costs is not None:
            for pass_ in ("forward", "training"):
                found["costs"][pass_]["total"] = getattr(self.costs, pass_).total
            for kind in ("activations", "checkpointed", "reference", "planned"):
                if found["costs"][kind] is not None:
                    found["costs"][kind]["total"] = getattr(self.costs, kind).total
        return found


def make_plan(
    name: str,
    network: nn.Module,
    setting: Setting,
    unused: Mapping[str, tuple[int, ...]] | None = None,
    context: int | None = None,
) -> Plan:
    """Plan a network, which may be on the meta device.

    Args:
        name: What to call it.
        network: The network; parameters that need no gradient count as frozen.
        setting: How it is trained.
        unused: Names and shapes of tensors that ship but belong to no network.
        context: Tokens of the longest sequence.

    Raises:
        ValueError: If the vision tokens of the setting do not make up one frame.
    """
    trainable = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    state, host = _state(network, trainable, setting)
    if setting.frozen_reference:
        state = replace(state, frozen_reference=state.weights)
    notes = ()
    costs = None
    if isinstance(network, VisionLanguageModel):
        sizes = NetworkSizes.of(network)
        costs, notes = _costs(sizes, setting), sizes.assumptions
    else:
        notes = (
            f"operations, activations and caches are known of VisionLanguageModel, not of {type(network).__name__}",
        )
    return Plan(
        name=name,
        setting=setting,
        parts=count_parts(network, unused),
        trainable=trainable,
        state=state,
        host=host,
        costs=costs,
        context=context,
        notes=notes,
    )


def _state(network: nn.Module, trainable: int, setting: Setting) -> tuple[StateMemory, float]:
    precision = PRECISIONS[setting.precision]
    if setting.parts is not None:
        return placed_state(
            network, setting.placement, precision, devices=setting.devices, expert_ranks=setting.expert_ranks
        )
    held = sum(parameter.numel() for parameter in network.parameters())
    unit = largest_unit(network)
    return (
        state_memory(held, trainable, unit, devices=setting.devices, sharding=setting.sharding, precision=precision),
        0.0,
    )


def _costs(sizes: NetworkSizes, setting: Setting) -> Costs:
    if setting.vision_share and not setting.frames:
        raise ValueError(
            f"{setting.vision_share:.0%} of {setting.sequence_length} tokens are fewer than the {setting.frame_tokens} of one "
            "frame: choose fewer frame tokens, a longer sequence, or a vision share of 0"
        )
    grids = [setting.grid(sizes.merge)] if setting.frames else []
    patches = setting.frames * setting.frame_tokens * sizes.merge**2
    tokens, precision = setting.sequence_length, PRECISIONS[setting.precision]
    # A rank of a sequence group has its share of the tokens and of the media among them.
    shares = [-(-number // setting.sequence_ranks) for number in (tokens, patches)]
    held = partial(activation_memory, sizes, *shares, precision=precision)
    reference = None
    if any(layer.topk or isinstance(layer.pattern, BlockPattern | NativePattern) for layer, _ in sizes.layers):
        reference = held(sparse_reference=True)
    kept, recomputed = held(), held(checkpointing=True)
    return Costs(
        forward=forward_flops(sizes, [tokens], grids),
        training=training_flops(sizes, [tokens], grids),
        activations=kept,
        checkpointed=recomputed,
        reference=reference,
        cache=cache_bytes(sizes),
        planned=Activations(
            decoder=(recomputed if setting.placement("decoder").recomputed else kept).decoder,
            vision=(recomputed if setting.placement("vision").recomputed else kept).vision,
            head=kept.head,
        ),
    )
