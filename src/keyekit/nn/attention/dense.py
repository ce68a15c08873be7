"""Dense causal attention."""

from __future__ import annotations

from torch import Tensor, nn

from keyekit.nn.attention.base import Attention, AttentionOutput, GroupedQueryProjection, LayerContext
from keyekit.nn.attention.cached import cached_attention
from keyekit.nn.attention.segmented import segmented_attention
from keyekit.nn.spec import LayerSpec

__all__ = ["Dense"]


class Dense(Attention):
    """Every token attends to all earlier tokens of its sequence (Qwen3, Keye-VL 8B sheet 1.2).

    Runs through PyTorch's fused attention.

    Args:
        spec: Sizes of the layer, filled in by the decoder.
    """

    takes_parts = True

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.projection = GroupedQueryProjection(spec)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, spec.dim, bias=False)

    def forward(self, hidden: Tensor, context: LayerContext) -> AttentionOutput:
        """Attend to every earlier token; see :class:`Attention`."""
        query, key, value = context.exchange.to_heads(*self.projection(hidden, context.rotary))
        if context.cache is None:
            mixed = segmented_attention(query, key, value, context.segments, causal=True)
        else:
            mixed = cached_attention(query, key, value, context.cache, context.segments)
        (mixed,) = context.exchange.to_tokens(mixed)
        return AttentionOutput(hidden=self.o_proj(mixed.flatten(1)))
