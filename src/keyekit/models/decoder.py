"""The Qwen3-style decoder with three-axis positions, whose attention and feed-forward are parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from keyekit.batch import PackPart, Segments
from keyekit.nn.attention.base import Attention, AttentionOutput, LayerCache, LayerContext
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.exchange import ContextExchange, WholePacks
from keyekit.nn.moe.base import FeedForward, FeedForwardOutput, RouterStatistics
from keyekit.nn.moe.dense import SwiGLU
from keyekit.nn.norm import RMSNorm
from keyekit.nn.rope.rotary import MultimodalRope, Rotary
from keyekit.nn.spec import LayerSpec

__all__ = ["Decoder", "DecoderCache", "DecoderLayer", "DecoderOutput", "LayerSelection"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSelection:
    """The discrete choices of one layer, to be recorded and replayed.

    Args:
        keys: ``[T, N]`` keys selected by a sparse attention, or ``None``.
        experts: ``[T, A]`` experts chosen by a router, or ``None``.
    """

    keys: Tensor | None = None
    experts: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOutput:
    """What the decoder returns.

    Of a pack that is divided among ranks, each rank returns its share: losses, and those made of ``routing``, add up over ranks
    to those of the pack.

    Args:
        hidden: ``[T, D]`` final normalised states; :meth:`Decoder.logits` turns them into logits.
        losses: Scalars that layers add to the training loss, averaged over layers, by name.
        meters: Detached scalars to log, averaged over layers, by name.
        selections: Discrete choices of each layer.
        routing: Raw router statistics of each mixture layer; objectives turn them into losses.
    """

    hidden: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    meters: dict[str, Tensor] = field(default_factory=dict)
    selections: tuple[LayerSelection, ...] = ()
    routing: tuple[RouterStatistics, ...] = ()


class DecoderCache(Protocol):
    """One :class:`LayerCache` per layer."""

    def layer(self, index: int) -> LayerCache:
        """The cache of one layer."""
        ...


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each after an RMSNorm and with a residual.

    Args:
        spec: Sizes of the layer.
        attention: Makes the attention.
        feed_forward: Makes the feed-forward.
    """

    def __init__(
        self,
        spec: LayerSpec,
        attention: Callable[[LayerSpec], Attention],
        feed_forward: Callable[[LayerSpec], FeedForward],
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.dim, spec.norm_eps)
        self.self_attn = attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.dim, spec.norm_eps)
        self.mlp = feed_forward(spec)

    def forward(
        self, hidden: Tensor, context: LayerContext, experts: Tensor | None = None, tokens: Tensor | None = None
    ) -> tuple[Tensor, AttentionOutput, FeedForwardOutput]:
        """Transform ``hidden [T, D]``; returns it with what the two parts reported."""
        attended = self.self_attn(self.input_layernorm(hidden), context)
        hidden = hidden + attended.hidden
        segments, num_tokens = context.held()
        transformed = self.mlp(
            self.post_attention_layernorm(hidden), num_tokens, experts, tokens=tokens, segments=segments
        )
        return hidden + transformed.hidden, attended, transformed


class Decoder(nn.Module):
    """Causal language model over packed sequences (Keye-VL 8B sheet 1.2, Keye-VL-2.0 sheet 2.2).

    The defaults are the text tower of Keye-VL-8B. ``attention`` and ``feed_forward`` are called once per layer, so that each
    layer owns its parts.

    Args:
        vocab_size: Rows of the embedding, V.
        dim: Width D.
        num_layers: Layers.
        num_heads: Query heads H.
        num_groups: Key/value groups G.
        head_dim: Width of a head K.
        hidden_dim: Inner width of a dense feed-forward.
        attention: Which attention each layer uses.
        feed_forward: Which feed-forward each layer uses.
        rope_theta: Base of the rotary frequencies.
        rope_section: Rotary pairs for time, height and width; they add up to ``head_dim / 2``.
        norm_eps: Epsilon of every RMSNorm.
        tie_embeddings: Whether the output layer shares the embedding's weight.
    """

    def __init__(
        self,
        vocab_size: int = 151936,
        dim: int = 4096,
        num_layers: int = 36,
        num_heads: int = 32,
        num_groups: int = 8,
        head_dim: int = 128,
        hidden_dim: int = 12288,
        attention: Callable[[LayerSpec], Attention] = Dense,
        feed_forward: Callable[[LayerSpec], FeedForward] = SwiGLU,
        rope_theta: float = 1e6,
        rope_section: tuple[int, int, int] = (16, 24, 24),
        norm_eps: float = 1e-6,
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.dim = dim
        self.exchange: ContextExchange = WholePacks()
        """Brings the tokens of divided packs together; sequence parallelism replaces it."""
        self.rope = MultimodalRope(head_dim=head_dim, theta=rope_theta, section=rope_section)
        self.embed_tokens = nn.Embedding(vocab_size, dim)
        specs = (
            LayerSpec(
                layer=layer,
                dim=dim,
                num_heads=num_heads,
                num_groups=num_groups,
                head_dim=head_dim,
                hidden_dim=hidden_dim,
                norm_eps=norm_eps,
                rope=self.rope,
            )
            for layer in range(num_layers)
        )
        self.layers = nn.ModuleList(DecoderLayer(spec, attention, feed_forward) for spec in specs)
        self.norm = RMSNorm(dim, norm_eps)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.apply(_initialise)
        if tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        segments: Segments,
        *,
        num_tokens: int | None = None,
        tokens: Tensor | None = None,
        cache: DecoderCache | None = None,
        selections: Sequence[LayerSelection] | None = None,
        part: PackPart | None = None,
    ) -> DecoderOutput:
        """Run all layers.

        Args:
            embeddings: ``[T, D]`` token embeddings with vision features already in place.
            positions: ``[3, T]`` int64.
            segments: One segment per sequence.
            num_tokens: Leading tokens that belong to samples; all by default.
            tokens: ``[T]`` int64 token ids, for routers that read them.
            cache: Keys and values of earlier tokens while decoding.
            selections: Discrete choices to replay, one entry per layer.
            part: Set where all other arguments are one rank's part of a pack.

        Returns:
            Final hidden states with losses, meters, selections and routing.
        """
        num_tokens = embeddings.shape[0] if num_tokens is None else num_tokens
        whole = LayerContext(
            segments=segments if part is None else part.segments,
            rotary=Rotary(self.rope, positions),
            num_tokens=num_tokens if part is None else part.num_tokens,
            exchange=WholePacks() if part is None else self.exchange,
            part=part,
        )
        replay = selections if selections is not None else (LayerSelection(),) * len(self.layers)
        hidden, attended, transformed = embeddings, [], []
        for index, (layer, chosen) in enumerate(zip(self.layers, replay, strict=True)):
            context = replace(whole, cache=None if cache is None else cache.layer(index), selection=chosen.keys)
            hidden, attention, feed_forward = layer(hidden, context, chosen.experts, tokens)
            attended.append(attention)
            transformed.append(feed_forward.routing)
        return DecoderOutput(
            hidden=self.norm(hidden),
            losses=_mean_by_name([output.losses for output in attended]),
            meters=_mean_by_name([output.meters for output in attended]),
            selections=tuple(
                LayerSelection(keys=output.selection, experts=None if routing is None else routing.experts)
                for output, routing in zip(attended, transformed, strict=True)
            ),
            routing=_of_whole_pack([routing.statistics for routing in transformed if routing is not None], whole),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Vocabulary logits ``[T, V]`` in float32 of ``hidden [T, D]``."""
        return self.lm_head(hidden).float()


def _of_whole_pack(statistics: list[RouterStatistics], context: LayerContext) -> tuple[RouterStatistics, ...]:
    """Statistics with the visits and the tokens of the whole pack, as routers of divided packs know those of their rank.

    Probabilities stay those of this rank's tokens: losses are linear in them, so that they add up over ranks.
    """
    if context.part is None or not statistics:
        return tuple(statistics)
    own = [counts for layer in statistics for counts in _counted(layer)]
    flat = context.exchange.total(torch.cat([counts.flatten() for counts in own]))  # one sum for all layers
    totals = flat.split([counts.numel() for counts in own])
    whole = iter([total.view_as(counts) for total, counts in zip(totals, own, strict=True)])
    return tuple(_recounted(layer, whole, context.num_tokens) for layer in statistics)


def _counted(layer: RouterStatistics) -> list[Tensor]:
    """What of the statistics is counted, and carries no gradient."""
    sequences = layer.sequences
    return [layer.counts] if sequences is None else [layer.counts, sequences.counts, sequences.num_tokens]


def _recounted(layer: RouterStatistics, counts: Iterator[Tensor], num_tokens: int) -> RouterStatistics:
    """The statistics with other counts, in the order of :func:`_counted`."""
    layer = replace(layer, counts=next(counts), num_tokens=num_tokens)
    if layer.sequences is None:
        return layer
    return replace(layer, sequences=replace(layer.sequences, counts=next(counts), num_tokens=next(counts)))


def _mean_by_name(values: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    names = {name: None for layer in values for name in layer}
    means = {}
    for name in names:
        present = [layer[name] for layer in values if name in layer]
        means[name] = sum(present[1:], start=present[0]) / len(present)
    return means


def _initialise(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02 (Keye-VL 8B sheet 1.2, initializer_range)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
