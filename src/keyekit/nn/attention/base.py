"""The contract of an attention scheme, and the projections that all grouped-query schemes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from keyekit.batch import PackPart, Segments
from keyekit.nn.attention.exchange import ContextExchange, WholePacks
from keyekit.nn.norm import RMSNorm
from keyekit.nn.rope.rotary import Rotary
from keyekit.nn.spec import LayerSpec

__all__ = [
    "Attention",
    "AttentionOutput",
    "CacheGroup",
    "CacheStep",
    "GroupedQueryProjection",
    "LayerCache",
    "LayerContext",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheGroup:
    """Sequences of similar length, whose stored rows one padded view holds while each gets one more token.

    Args:
        start: First row of the group in every buffer of the cache.
        capacity: Rows reserved for each of its sequences.
        count: Sequences in it.
        lengths: ``[count]`` int64 rows stored of each, the new ones included.
        longest: The largest of them.
        mask: ``[count, longest]`` bool, true where a row is stored; ``None`` if all are.
    """

    start: int
    capacity: int
    count: int
    lengths: Tensor
    longest: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStep:
    """How one forward pass meets the cache; the same for all layers, so that it is worked out once.

    Args:
        rows: ``[T]`` int64, where in every buffer the new tokens go.
        groups: All sequences, if each has exactly one new token; otherwise empty.
        order: ``[B]`` int64 sequences in the order of the groups, ``None`` if that is their own order.
        inverse: ``[B]`` int64, brings results in the order of the groups back into that of the sequences.
    """

    rows: Tensor
    groups: tuple[CacheGroup, ...]
    order: Tensor | None
    inverse: Tensor | None

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Divide ``rows [B, …]`` among the groups."""
        ordered = rows if self.order is None else rows[self.order]
        return ordered.split([group.count for group in self.groups])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Put what :meth:`split` gave, transformed group by group, back into the order of the sequences."""
        joined = parts[0] if len(parts) == 1 else torch.cat(list(parts))
        return joined if self.inverse is None else joined[self.inverse]


class LayerCache(Protocol):
    """Where a layer keeps what later tokens need of earlier ones.

    A scheme that is content with packed keys calls :meth:`extend` and nothing else. One that decodes fast calls
    :meth:`append`, then attends to the padded rows of each group of the step in place.
    """

    @property
    def step(self) -> CacheStep:
        """The forward pass under way."""
        ...

    def append(self, name: str, new: Tensor) -> None:
        """Store ``new [T, …]`` behind what is stored under ``name``."""
        ...

    def stored(self, name: str, group: CacheGroup) -> Tensor:
        """What is stored of a group's sequences, as a view ``[count, …, longest, width]``: tokens come last but one."""
        ...

    def extend(self, name: str, new: Tensor, segments: Segments) -> Tensor:
        """Append ``new [T, …]`` and return everything stored under ``name`` as packed keys ``[S, …]``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerContext:
    """What an attention layer knows about the tokens beside their hidden states.

    Args:
        segments: Sequences of the pack; while decoding their keys outnumber their queries.
        rotary: Rotary tables of the positions of this rank's tokens.
        num_tokens: Leading tokens that belong to samples; those after them pad the pack and count in no statistic.
        cache: This layer's cache, or ``None`` in training.
        selection: ``[T, N]`` keys to use instead of choosing them (replay), or ``None``.
        exchange: Brings tokens of other ranks; by default a rank has all tokens of its packs.
        part: Which tokens of the pack are this rank's, if they are not all: hidden states, positions and selection are theirs,
            ``segments`` and ``num_tokens`` are the whole pack's.
    """

    segments: Segments
    rotary: Rotary
    num_tokens: int
    cache: LayerCache | None = None
    selection: Tensor | None = None
    exchange: ContextExchange = field(default_factory=WholePacks)
    part: PackPart | None = None

    def own(self) -> LayerContext:
        """The same for this rank's queries alone, against the keys of the whole pack."""
        if self.part is None:
            return self
        return replace(self, segments=self.part.queries, num_tokens=self.part.num_queries)

    def held(self) -> tuple[Segments, int]:
        """Sequences and number of real tokens of this rank's tokens by themselves, for what mixes no tokens."""
        if self.part is None:
            return self.segments, self.num_tokens
        return self.part.held, self.part.num_queries


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOutput:
    """What an attention layer returns.

    Args:
        hidden: ``[T, D]``.
        selection: ``[T, N]`` int32 selected keys (rows of the packed keys), or ``None`` for a dense scheme.
        losses: Scalars to add to the training loss, by name; shares that add up over the ranks that divide a pack.
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

    takes_parts = False
    """Whether :meth:`forward` knows packs that are divided among ranks: it mixes tokens through ``context.exchange`` alone."""

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
