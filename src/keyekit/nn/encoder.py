"""A bidirectional pre-norm transformer block over packed segments, shared by vision and text towers."""

from __future__ import annotations

from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.attention.segmented import segmented_attention
from keyekit.nn.mlp import GeluMlp
from keyekit.nn.rope.rotary import apply_rotary

__all__ = ["EncoderBlock"]


def _initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases, as SigLIP's towers begin."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


class EncoderAttention(nn.Module):
    """Bidirectional multi-head attention with biases, optionally with rotary tables."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide dim={dim}")
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, segments: Segments, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        """Mix ``x [T, dim]`` inside segments; ``tables`` are cosines and sines ``[T, 1, head_dim]``."""
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if tables is not None:
            query, key = apply_rotary(query, *tables), apply_rotary(key, *tables)
        return self.out_proj(segmented_attention(query, key, value, segments, causal=False).flatten(1))


class EncoderBlock(nn.Module):
    """Attention and perceptron, each after a LayerNorm and with a residual (Keye-VL 8B sheet 1.3).

    Args:
        dim: Width.
        num_heads: Attention heads.
        hidden_dim: Inner width of the perceptron.
        eps: Epsilon of the norms.
    """

    def __init__(self, dim: int, num_heads: int, hidden_dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(dim, eps)
        self.self_attn = EncoderAttention(dim, num_heads)
        self.layer_norm2 = nn.LayerNorm(dim, eps)
        self.mlp = GeluMlp(dim, hidden_dim)
        self.apply(_initialise)

    def forward(self, x: Tensor, segments: Segments, tables: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Transform ``x [T, dim]``, attending bidirectionally inside each segment."""
        x = x + self.self_attn(self.layer_norm1(x), segments, tables)
        return x + self.mlp(self.layer_norm2(x))
