"""One vector per image from its patch features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.attention.segmented import segmented_attention
from keyekit.nn.mlp import GeluMlp

__all__ = ["AttentionPooling"]


class AttentionPooling(nn.Module):
    """SigLIP's pooling head: one learned query attends to all patches of an image (Keye-VL 8B sheet 1.3, "MAP head").

    Args:
        dim: Width of features and result.
        num_heads: Attention heads.
        hidden_dim: Inner width of the perceptron.
    """

    def __init__(self, dim: int, num_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.probe = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)  # holds the official parameter names
        self.layernorm = nn.LayerNorm(dim, 1e-6)
        self.mlp = GeluMlp(dim, hidden_dim)

    def forward(self, features: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Pool ``features [P, dim]`` to ``[number of grids, dim]``."""
        lengths = [rows * columns for rows, columns in grids]
        segments = Segments.of([1] * len(grids), key_lengths=lengths, device=features.device)
        weights = self.attention.in_proj_weight.chunk(3)
        biases = self.attention.in_proj_bias.chunk(3)
        query = nn.functional.linear(self.probe[0], weights[0], biases[0]).expand(len(grids), -1)
        key = nn.functional.linear(features, weights[1], biases[1])
        value = nn.functional.linear(features, weights[2], biases[2])
        query, key, value = (tensor.unflatten(-1, (self.num_heads, -1)) for tensor in (query, key, value))
        pooled = self.attention.out_proj(segmented_attention(query, key, value, segments, causal=False).flatten(1))
        return pooled + self.mlp(self.layernorm(pooled))
