"""The contract of a vision encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["VisionEncoder"]


class VisionEncoder(nn.Module, ABC):
    """Base of the vision family: encodes packed patches of any number of images and frames of any size.

    Args:
        dim: Width of the features.
        patch_size: Side of a patch in pixels.
    """

    @property
    def mixes_frames(self) -> bool:
        """Whether frames of a video attend to each other, so that they have to be encoded together; to be safe, yes."""
        return True

    def __init__(self, dim: int, patch_size: int) -> None:
        super().__init__()
        self.dim = dim
        self.patch_size = patch_size

    @abstractmethod
    def forward(self, patches: Tensor, grids: Sequence[tuple[int, int]], frames: Sequence[int] | None = None) -> Tensor:
        """Encode.

        Args:
            patches: ``[P, C, patch, patch]`` normalised pixels, row-major inside each image or frame.
            grids: ``(rows, columns)`` in patches of each image or frame.
            frames: Number of consecutive grids of each medium, 1 for an image; every grid is a medium of its own if not
                given. Nothing is exchanged between media; most encoders exchange nothing between grids and ignore it.

        Returns:
            ``[P, dim]`` features in the order of the patches.
        """
