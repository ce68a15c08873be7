"""Names of tensors: ours, the released checkpoints', and those of other tools."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "ExpertForm",
    "Place",
    "canonical_name",
    "expert_names",
    "is_passenger",
    "official_name",
    "own_name",
    "place_of",
]

ExpertForm = Literal["fused", "separate"]
"""Experts of a layer stacked in two tensors, or one matrix each."""

_PREFIXES = (
    # ours, official (Keye-VL 8B sheet 1.6, Keye-VL-2.0 sheet 5); the longer of two comes first, in both columns
    ("decoder.lm_head.", "lm_head."),
    ("decoder.", "model."),
    ("pooling.", "visual.vision_model.head."),
    ("vision.", "visual.vision_model."),
    ("projector.", "mlp_AR."),
    ("text.", "text_model."),
)
_TRANSFORMERS_PREFIXES = (
    # transformers, official (Keye-VL 8B sheet 1.6)
    ("model.visual.", "visual."),
    ("model.mm_projector.", "mlp_AR."),
    ("model.language_model.", "model."),
    ("vision_model.", "visual.vision_model."),  # a SigLIP checkpoint, whose tower is where Keye's began (8B sheet 4.2)
)
_PROJECTED = re.compile(r"(decoder\.layers\.\d+\.self_attn\.)([qkv]_(?:proj|norm)\.)")
_EXPERT = re.compile(r"(.+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_FUSED = re.compile(r"(.+\.mlp\.experts)\.(gate_up|down)_proj")
_PASSENGERS = (
    # Shipped, but not used by the released forward pass (Keye-VL 8B sheet 1.3 and 1.7, Keye-VL-2.0 sheet 2.4 and 5).
    re.compile(r"visual\.vision_model\.embeddings\.packing_position_embedding\..+"),
    re.compile(r"visual\.vision_model\.head\..+"),
    re.compile(r"(.+\.)?rotary_emb\.inv_freq"),
)


def official_name(name: str) -> str:
    """The released checkpoints' name of one of our parameters.

    Example:
        >>> official_name("decoder.layers.0.self_attn.projection.q_proj.weight")
        'model.layers.0.self_attn.q_proj.weight'
    """
    return _renamed(name, _PREFIXES).replace(".self_attn.projection.", ".self_attn.")


def own_name(name: str) -> str:
    """Our name of a tensor of a released checkpoint, the inverse of :func:`official_name`.

    Example:
        >>> own_name("model.layers.0.self_attn.q_proj.weight")
        'decoder.layers.0.self_attn.projection.q_proj.weight'
        >>> own_name("model.layers.0.self_attn.sa_indexer.q_proj.weight")
        'decoder.layers.0.self_attn.sa_indexer.q_proj.weight'
    """
    ours = _renamed(name, tuple((theirs, ours) for ours, theirs in _PREFIXES))
    return _PROJECTED.sub(r"\1projection.\2", ours)


def canonical_name(name: str) -> str:
    """The official name of a tensor in a folder, which may use the names of transformers.

    Example:
        >>> canonical_name("model.mm_projector.linear_1.bias"), canonical_name("model.norm.weight")
        ('mlp_AR.linear_1.bias', 'model.norm.weight')
    """
    return _renamed(name, _TRANSFORMERS_PREFIXES)


def is_passenger(name: str) -> bool:
    """Whether a tensor, by its official name, is shipped although the released forward pass never uses it."""
    return any(pattern.fullmatch(name) for pattern in _PASSENGERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor of a folder lies within the tensor that the network holds.

    The matrix of a single expert is a transposed slice of the stacked experts (Keye-VL-2.0 sheet 5); every other tensor is
    the whole.

    Args:
        tensor: Official name of the network's tensor.
        expert: Number of the expert, or ``None`` for the whole tensor.
        part: Which of the expert's three matrices.
    """

    tensor: str
    expert: int | None = None
    part: Literal["gate", "up", "down"] | None = None

    def region(self, whole: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Offset and shape of the place in a tensor of shape ``whole``."""
        if self.expert is None:
            return (0,) * len(whole), whole
        width = whole[2] if self.part == "down" else whole[2] // 2
        return (self.expert, 0, width if self.part == "up" else 0), (1, whole[1], width)

    def stored_shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Shape under which the folder holds it."""
        _, shape = self.region(whole)
        return shape if self.expert is None else (shape[2], shape[1])


def place_of(name: str) -> Place:
    """The place of a tensor, by its official name.

    Example:
        >>> place_of("model.layers.3.mlp.experts.7.up_proj.weight")
        Place(tensor='model.layers.3.mlp.experts.gate_up_proj', expert=7, part='up')
    """
    match = _EXPERT.fullmatch(name)
    if match is None:
        return Place(tensor=name)
    stem, expert, part = match.groups()
    fused = f"{stem}.down_proj" if part == "down" else f"{stem}.gate_up_proj"
    return Place(tensor=fused, expert=int(expert), part=part)  # pyright: ignore[reportArgumentType]


def expert_names(shapes: Mapping[str, tuple[int, ...]], form: ExpertForm) -> Iterator[str]:
    """Names under which the network's tensors stand in a folder whose experts have this form.

    Args:
        shapes: Shapes of the tensors by official name, in their order.
        form: ``fused`` keeps the names; ``separate`` replaces the two stacked tensors of a layer by three matrices an expert.
    """
    for name, shape in shapes.items():
        match = _FUSED.fullmatch(name) if form == "separate" else None
        if match is None:
            yield name
            continue
        stem, which = match.groups()
        parts = ("down",) if which == "down" else ("gate", "up")
        yield from (f"{stem}.{expert}.{part}_proj.weight" for expert in range(shape[0]) for part in parts)


def _renamed(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
