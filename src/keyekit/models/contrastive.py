"""Image and text towers that meet in one embedding space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.batch import ContrastiveBatch, Segments
from keyekit.nn.encoder import EncoderBlock
from keyekit.nn.vision.base import VisionEncoder
from keyekit.nn.vision.pooling import AttentionPooling

__all__ = ["ContrastiveModel", "TextTower"]


class TextTower(nn.Module):
    """A small bidirectional text encoder; the last token of a caption is its embedding, as in SigLIP.

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
        super().__init__()
        self.dim = dim
        self.max_tokens = max_tokens
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.position_embedding = nn.Embedding(max_tokens, dim)
        self.layers = nn.ModuleList(EncoderBlock(dim, num_heads, hidden_dim) for _ in range(num_layers))
        self.final_layer_norm = nn.LayerNorm(dim, 1e-6)
        self.head = nn.Linear(dim, dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, tokens: Tensor, segments: Segments) -> Tensor:
        """Encode packed captions.

        Args:
            tokens: ``[T]`` int64.
            segments: One segment per caption.

        Returns:
            ``[number of captions, dim]``.

        Raises:
            ValueError: If a caption is longer than ``max_tokens``.
        """
        if segments.maximum > self.max_tokens:
            raise ValueError(
                f"a caption of {segments.maximum} tokens exceeds the text tower's max_tokens={self.max_tokens}"
            )
        offsets = segments.offsets.long()
        lengths = offsets.diff()
        index = torch.arange(segments.total, device=tokens.device)
        position = index - offsets[:-1].repeat_interleave(lengths, output_size=segments.total)
        hidden = self.token_embedding(tokens) + self.position_embedding(position)
        for layer in self.layers:
            hidden = layer(hidden, segments)
        return self.head(self.final_layer_norm(hidden[offsets[1:] - 1]))


class ContrastiveModel(nn.Module):
    """Vision tower with attention pooling beside a text tower (SigLIP; Keye-VL 8B sheet 4.2, stage 0).

    Args:
        vision: Encodes patches; this is the part that later stages start from.
        text: Encodes captions into the width of the vision tower.
        pooling_heads: Attention heads of the pooling.
        pooling_hidden_dim: Inner width of the pooling's perceptron.
    """

    def __init__(
        self, vision: VisionEncoder, text: TextTower, pooling_heads: int = 16, pooling_hidden_dim: int = 4304
    ) -> None:
        super().__init__()
        if text.dim != vision.dim:
            raise ValueError(f"the text tower's dim={text.dim} must equal the vision tower's dim={vision.dim}")
        self.vision = vision
        self.pooling = AttentionPooling(vision.dim, pooling_heads, pooling_hidden_dim)
        self.text = text
        # SigLIP's starting point: temperature ln 10 and bias -10 (Keye-VL 8B sheet 4.2).
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, batch: ContrastiveBatch) -> tuple[Tensor, Tensor]:
        """Unit-length embeddings ``[B, dim]`` of the images and ``[B, dim]`` of the captions."""
        features = self.vision(batch.vision.patches, batch.vision.grids, batch.vision.frames)
        images = self.pooling(features, batch.vision.grids)
        captions = self.text(batch.tokens, batch.segments)
        return functional.normalize(images, dim=-1), functional.normalize(captions, dim=-1)

    def logits(self, images: Tensor, captions: Tensor) -> Tensor:
        """``exp(scale) * images @ captions.T + bias`` as ``[B, B]`` float32."""
        return self.logit_scale.exp() * images.float() @ captions.float().T + self.logit_bias
