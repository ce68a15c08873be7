"""Image and text towers that meet in one embedding space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.batch import ContrastiveBatch
from keyekit.nn.text.base import TextEncoder
from keyekit.nn.vision.base import VisionEncoder
from keyekit.nn.vision.pooling import AttentionPooling

__all__ = ["ContrastiveModel"]


class ContrastiveModel(nn.Module):
    """Vision tower with attention pooling beside a text tower (SigLIP; Keye-VL 8B sheet 4.2, stage 0).

    Args:
        vision: Encodes patches; this is the part that later stages start from.
        text: Encodes captions into the width of the vision tower.
        pooling_heads: Attention heads of the pooling.
        pooling_hidden_dim: Inner width of the pooling's perceptron.

    Raises:
        ValueError: If the two towers differ in width.
    """

    def __init__(
        self, vision: VisionEncoder, text: TextEncoder, pooling_heads: int = 16, pooling_hidden_dim: int = 4304
    ) -> None:
        super().__init__()
        if text.dim != vision.dim:
            raise ValueError(f"the text tower's dim={text.dim} must equal the vision tower's dim={vision.dim}")
        self.vision = vision
        self.pooling = AttentionPooling(vision.dim, pooling_heads, pooling_hidden_dim)
        self.text = text
        # SigLIP's starting point: temperature ln 10 and bias -10 (Keye-VL 8B sheet 4.2).
        self.logit_scale = nn.Parameter(torch.tensor([math.log(10.0)]))
        self.logit_bias = nn.Parameter(torch.tensor([-10.0]))

    def forward(self, batch: ContrastiveBatch) -> tuple[Tensor, Tensor]:
        """Unit-length embeddings ``[B, dim]`` of the images and ``[B, dim]`` of the captions."""
        features = self.vision(batch.vision.patches, batch.vision.grids, batch.vision.frames)
        images = self.pooling(features, batch.vision.grids)
        captions = self.text(batch.tokens, batch.segments)
        return functional.normalize(images, dim=-1), functional.normalize(captions, dim=-1)

    def logits(self, images: Tensor, captions: Tensor) -> Tensor:
        """``exp(scale) * images @ captions.T + bias`` as ``[B, B]`` float32."""
        return self.logit_scale.exp() * images.float() @ captions.float().T + self.logit_bias
