"""A bidirectional text encoder over packed captions."""

from __future__ import annotations

from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.encoder import EncoderBlock
from keyekit.nn.text.base import TextEncoder

__all__ = ["TextTower"]


class TextTower(TextEncoder):
    """SigLIP's text transformer without padding; the last token of a caption is its embedding.

    SigLIP itself pads every caption to its longest length and attends to the padding; ``SiglipText`` does so.

    Args:
        vocab_size: Rows of the embedding.
        dim: Width.
        num_layers: Blocks.
        num_heads: Attention heads.
        hidden_dim: Inner width of the perceptrons.
        max_tokens: Longest caption.
    """

    def __init__(
        self,
        vocab_size: int = 32000,
        dim: int = 1152,
        num_layers: int = 27,
        num_heads: int = 16,
        hidden_dim: int = 4304,
        max_tokens: int = 64,
    ) -> None:
        super().__init__(dim, max_tokens)
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_tokens, dim)
        self.layers = nn.ModuleList(EncoderBlock(dim, num_heads, hidden_dim) for _ in range(num_layers))
        self.final_layer_norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, tokens: Tensor, segments: Segments) -> Tensor:
        """Encode packed captions ``[T]`` to ``[number of captions, dim]``; see :class:`TextEncoder`."""
        _, position = self.positions(segments)
        hidden = self.token_embedding(tokens) + self.position_embedding(position)
        for layer in self.layers:
            hidden = layer(hidden, segments)
        return self.head(self.final_layer_norm(hidden[segments.offsets.long()[1:] - 1]))
