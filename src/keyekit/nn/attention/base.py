"""The contract of an attention scheme, and the projections that all grouped-query schemes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.norm import RMSNorm
from keyekit.nn.rope.rotary import Rotary
from keyekit.nn.spec import LayerSpec

__all__ = ["Attention", "AttentionOutput", "GroupedQueryProjection", "LayerCache", "LayerContext"]


class LayerCache(Protocol):
    """Where a layer keeps what later tokens need of earlier ones."""

    def extend(self, name: str, new: Tensor, segments: Segments) -> Tensor:
        """Append ``new [T, …]`` and return everything stored under ``name`` as packed keys ``[S, …]``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerContext:
    """What an attention layer knows about the tokens beside their hidden states.

    Args:
        segments: Sequences of the pack; while decoding their keys outnumber their queries.
        rotary: Rotary tables of the pack's positions.
        num_tokens: Leading tokens that belong to samples; those after them pad the pack and count in no statistic.
        cache: This layer's cache, or ``None`` in training.
        selection: ``[T, N]`` keys to use instead of choosing them (replay), or ``None``.
    """

    segments: Segments
    rotary: Rotary
    num_tokens: int
    cache: LayerCache | None = None
    selection: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOutput:
    """What an attention layer returns.

    Args:
        hidden: ``[T, D]``.
        selection: ``[T, N]`` int32 selected keys (rows of the packed keys), or ``None`` for a dense scheme.
        losses: Scalars to add to the training loss, by name.
        meters: Detached scalars to log, by name.
    """

    hidden: Tensor
    selection: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    meters: dict[str, Tensor] = field(default_factory=dict)


class Attention(nn.Module, ABC):
    """Base of the attention family: mixes the tokens of each sequence.

    A scheme is constructed as ``Scheme(spec, **its_own_arguments)``.

    Args:
        spec: Sizes of the layer.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, hidden: Tensor, context: LayerContext) -> AttentionOutput:
        """Attend.

        Args:
            hidden: ``[T, D]`` normalised hidden states.
            context: Segments, rotary tables, cache and selection.

        Returns:
            The mixed hidden states with selection, losses and meters.
        """


class GroupedQueryProjection(nn.Module):
    """Queries, keys and values of grouped-query attention with per-head RMSNorm before the rotation (Qwen3).

    Args:
        spec: Sizes of the layer.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        # Keye-VL 8B sheet 1.2: no bias; q_norm and k_norm over each head before the rotary embedding.
        self.q_proj = nn.Linear(spec.dim, spec.num_heads * spec.head_dim, bias=False)
        self.k_proj = nn.Linear(spec.dim, spec.num_groups * spec.head_dim, bias=False)
        self.v_proj = nn.Linear(spec.dim, spec.num_groups * spec.head_dim, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps)
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps)

    def forward(self, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Project ``hidden [T, D]`` to ``query [T, H, K]``, ``key [T, G, K]`` and ``value [T, G, K]``."""
        query = self.q_norm(self.q_proj(hidden).unflatten(-1, (-1, self.head_dim)))
        key = self.k_norm(self.k_proj(hidden).unflatten(-1, (-1, self.head_dim)))
        value = self.v_proj(hidden).unflatten(-1, (-1, self.head_dim))
        return rotary(query), rotary(key), value
