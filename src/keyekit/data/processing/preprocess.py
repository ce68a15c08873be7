"""From pictures of any size to the patches that a vision encoder takes, in one go."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from keyekit.data.processing.geometry import KEYE_PATCHES
from keyekit.data.processing.patchify import normalise_patches
from keyekit.data.processing.resize import Interpolation

__all__ = ["picture_patches"]

_NORMALISED = normalise_patches(torch.arange(256, dtype=torch.uint8)).numpy()
"""What each of the 256 levels becomes: looking it up is the cheapest way from uint8 to float32."""


def picture_patches(
    pixels: np.ndarray,
    height: int,
    width: int,
    interpolation: Interpolation = "bicubic",
    patch_size: int = KEYE_PATCHES.patch_size,
) -> Tensor:
    """Resize with antialiasing, normalise to [-1, 1] and cut into patches (Keye-VL 8B sheet 2.1 items 2 to 5).

    Pixels stay uint8, their channels side by side, until the last step, which goes picture by picture so that one fits the
    processor's cache.

    Args:
        pixels: ``[frames, h, w, 3]`` uint8 RGB.
        height: Height in pixels, a multiple of the patch; see :func:`keyekit.data.processing.resize.smart_resize`.
        width: Width in pixels, likewise.
        interpolation: How pixels between the given ones are made.
        patch_size: Side of a patch in pixels.

    Returns:
        ``[P, 3, patch, patch]`` float32, row-major in each frame.

    Raises:
        ValueError: If a side is no multiple of the patch.

    Example:
        >>> picture_patches(np.zeros((2, 50, 70, 3), np.uint8), 28, 56).shape
        torch.Size([16, 3, 14, 14])
    """
    if height < 1 or width < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"patches of {patch_size} do not fill {height}x{width}: choose a size with smart_resize")
    if pixels.shape[1:3] != (height, width):
        channels_last = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
        resized = functional.interpolate(channels_last, size=(height, width), mode=interpolation, antialias=True)
        pixels = resized.permute(0, 2, 3, 1).contiguous().numpy()
    rows, columns, area = height // patch_size, width // patch_size, patch_size**2
    patches = np.empty((len(pixels), rows * columns, 3, area), np.float32)
    for picture, target in zip(pixels, patches, strict=True):
        cut = picture.reshape(rows, patch_size, columns, patch_size * 3).swapaxes(1, 2).reshape(-1, area, 3)
        np.take(_NORMALISED, cut.swapaxes(1, 2), out=target, mode="clip")  # "clip": the default copies `out` first
    return torch.from_numpy(patches).view(-1, 3, patch_size, patch_size)
