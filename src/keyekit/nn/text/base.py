"""The contract of text encoders."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from keyekit.batch import Segments

__all__ = ["TextEncoder"]


class TextEncoder(nn.Module, ABC):
    """Base of the text encoders: captions in, one vector per caption out.

    Args:
        dim: Width of the vectors.
        max_tokens: Longest caption in tokens.
    """

    def __init__(self, dim: int, max_tokens: int) -> None:
        super().__init__()
        self.dim = dim
        self.max_tokens = max_tokens

    @abstractmethod
    def forward(self, tokens: Tensor, segments: Segments) -> Tensor:
        """Encode packed captions; none sees another.

        Args:
            tokens: ``[T]`` int64.
            segments: One segment per caption.

        Returns:
            ``[number of captions, dim]``, not normalised.

        Raises:
            ValueError: If a caption is longer than ``max_tokens``.
        """

    def positions(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """Caption and position within it of every token, ``[T]`` int64 each.

        Raises:
            ValueError: If a caption is longer than ``max_tokens``.
        """
        if segments.maximum > self.max_tokens:
            raise ValueError(
                f"a caption of {segments.maximum} tokens exceeds the text tower's max_tokens={self.max_tokens}: "
                "shorten the caption or choose a tower with more positions"
            )
        offsets = segments.offsets.long()
        captions = torch.arange(len(segments), device=offsets.device)
        caption = captions.repeat_interleave(offsets.diff(), output_size=segments.total)
        return caption, torch.arange(segments.total, device=offsets.device) - offsets[caption]
