"""SigLIP's text transformer, with or without its padding."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.encoder import EncoderBlock
from keyekit.nn.text.base import TextEncoder

__all__ = ["TextTower"]


class TextTower(TextEncoder):
    """SigLIP's text transformer, under the tensor names of its checkpoints; Keye's vision tower is trained against it.

    SigLIP pads every caption to ``max_tokens``, lets the padding take part in attention and takes the last position as the
    caption's embedding; ``pad_token`` does the same, for its released weights. Without, captions stay packed, and a caption's
    last token is its embedding. The defaults are so400m's size (Keye-VL 8B sheet 4.2).

    Args:
        vocab_size: Rows of the embedding.
        dim: Width.
        num_layers: Blocks.
        num_heads: Attention heads.
        hidden_dim: Inner width of the perceptrons.
        max_tokens: Longest caption.
        pad_token: Token that pads captions; 1 for SigLIP's own tokenizer, where it also ends a caption. ``None`` does not pad.
    """

    def __init__(
        self,
        vocab_size: int = 32000,
        dim: int = 1152,
        num_layers: int = 27,
        num_heads: int = 16,
        hidden_dim: int = 4304,
        max_tokens: int = 64,
        pad_token: int | None = None,
    ) -> None:
        super().__init__(dim, max_tokens)
        self.pad_token = pad_token
        tables = {"token_embedding": nn.Embedding(vocab_size, dim), "position_embedding": nn.Embedding(max_tokens, dim)}
        self.embeddings = nn.ModuleDict(tables)  # SigLIP's names, here and below
        blocks = nn.ModuleList(EncoderBlock(dim, num_heads, hidden_dim) for _ in range(num_layers))
        self.encoder = nn.ModuleDict({"layers": blocks})
        self.final_layer_norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, dim)
        for table in tables.values():
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor, segments: Segments) -> Tensor:
        """Encode packed captions ``[T]`` to ``[number of captions, dim]``; see :class:`TextEncoder`."""
        caption, position = self.positions(segments)
        if self.pad_token is not None:
            padded = tokens.new_full((len(segments), self.max_tokens), self.pad_token)
            padded[caption, position] = tokens
            tokens, position = (
                padded.flatten(),
                torch.arange(self.max_tokens, device=tokens.device).repeat(len(segments)),
            )
            segments = Segments.of([self.max_tokens] * len(segments), device=tokens.device)
        hidden = self.embeddings["token_embedding"](tokens) + self.embeddings["position_embedding"](position)
        for layer in cast(nn.ModuleList, self.encoder["layers"]):
            hidden = layer(hidden, segments)
        return self.head(self.final_layer_norm(hidden[segments.offsets.long()[1:] - 1]))
