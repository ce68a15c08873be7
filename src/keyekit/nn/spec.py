"""What a decoder layer tells the parts that it is built from."""

from __future__ import annotations

from dataclasses import dataclass

from keyekit.nn.rope.rotary import MultimodalRope

__all__ = ["LayerSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """Sizes that every attention and feed-forward scheme shares, so that a swap is one word.

    Args:
        layer: Index of the layer, from 0.
        dim: Model width D.
        num_heads: Query heads H.
        num_groups: Key/value groups G; divides ``num_heads``.
        head_dim: Width K of one head.
        hidden_dim: Width of a dense feed-forward.
        norm_eps: Epsilon of every RMSNorm.
        rope: Rotary embedding of the main attention.
    """

    layer: int
    dim: int
    num_heads: int
    num_groups: int
    head_dim: int
    hidden_dim: int
    norm_eps: float
    rope: MultimodalRope

    def __post_init__(self) -> None:
        if self.num_heads % self.num_groups:
            raise ValueError(f"num_groups={self.num_groups} must divide num_heads={self.num_heads}")
