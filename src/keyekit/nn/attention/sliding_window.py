"""Sliding-window attention with sinks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from keyekit.nn.attention.base import Attention, AttentionOutput, GroupedQueryProjection, LayerContext
from keyekit.nn.attention.cached import cached_attention
from keyekit.nn.attention.segmented import segmented_attention
from keyekit.nn.attention.share import key_share
from keyekit.nn.attention.windowed import cached_windowed_attention, windowed_attention, windowed_pairs
from keyekit.nn.spec import LayerSpec

__all__ = ["SlidingWindow"]


class SlidingWindow(Attention):
    """Every token attends to the last tokens of its sequence, and to its first few (Longformer; StreamingLLM).

    Time and memory are linear in the length of a sequence. Where none is longer than ``window``, this is dense attention.
    Keys keep the positions that they have in their sequence; StreamingLLM counts them anew inside its cache.

    Args:
        spec: Sizes of the layer, filled in by the decoder.
        window: Tokens that a query sees, its own included.
        sinks: Tokens at the beginning of the sequence that every query sees beside its window (StreamingLLM,
            arXiv:2309.17453, keeps four).
        sink_logits: Whether each head learns the logit of one more key that has no value, so that it can attend to nothing
            (gpt-oss). It begins at 0.
    """

    takes_parts = True

    def __init__(self, spec: LayerSpec, window: int = 4096, sinks: int = 4, sink_logits: bool = False) -> None:
        super().__init__(spec)
        if window < 1:
            raise ValueError(f"window={window}: a token sees at least itself, give 1 or more")
        if sinks < 0:
            raise ValueError(f"sinks={sinks}: give the number of first tokens that all others see, 0 for none")
        self.window = window
        self.sinks = sinks
        self.projection = GroupedQueryProjection(spec)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, spec.dim, bias=False)
        self.sink_logits = nn.Parameter(torch.zeros(spec.num_heads)) if sink_logits else None

    def forward(self, hidden: Tensor, context: LayerContext) -> AttentionOutput:
        """Attend to window and sinks; see :class:`Attention`."""
        query, key, value = context.exchange.to_heads(*self.projection(hidden, context.rotary))
        (mixed,) = context.exchange.to_tokens(self._mix(query, key, value, context))
        share = key_share(
            context, lambda queries, keys: windowed_pairs(queries, keys, self.window, self.sinks), hidden.device
        )
        return AttentionOutput(hidden=self.o_proj(mixed.flatten(1)), meters={"selected_share": share})

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, context: LayerContext) -> Tensor:
        segments, cache = context.segments, context.cache
        if segments.key_maximum <= self.window and self.sink_logits is None:
            if cache is None:
                return segmented_attention(query, key, value, segments, causal=True)
            return cached_attention(query, key, value, cache, segments)
        attend = windowed_attention if cache is None else partial(cached_windowed_attention, cache=cache)
        return attend(
            query,
            key,
            value,
            segments=segments,
            window=self.window,
            sinks=self.sinks,
            sink_logits=None if self.sink_logits is None else context.exchange.own_heads(self.sink_logits),
        )
