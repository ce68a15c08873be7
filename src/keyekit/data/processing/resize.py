"""Picture sizes that divide into merged patches, and resizing to them."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from PIL import Image

from keyekit.data.processing.geometry import KEYE_PATCHES

__all__ = ["Interpolation", "resize_frames", "smart_resize"]

Interpolation = Literal["bicubic", "bilinear"]
"""How pixels between the given ones are made; both with antialiasing."""

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def smart_resize(
    height: int, width: int, min_pixels: float, max_pixels: float, factor: int = KEYE_PATCHES.token_side
) -> tuple[int, int]:
    """Choose a size near the original whose sides are multiples of ``factor`` and whose area lies within limits.

    Keye-VL 8B sheet 2.1 item 2, Keye-VL-2.0 sheet 6.1. Sides are rounded down under the upper limit, so a picture may fall
    below the lower one where both are near each other.

    Args:
        height: Original height in pixels.
        width: Original width in pixels.
        min_pixels: Smallest area; smaller pictures grow.
        max_pixels: Largest area; larger pictures shrink.
        factor: Sides become multiples of this.

    Returns:
        ``(height, width)``.

    Raises:
        ValueError: If one side is more than 200 times the other, or a side is not positive.

    Example:
        >>> smart_resize(480, 640, 4 * 784, 16384 * 784)
        (476, 644)
    """
    if min(height, width) < 1:
        raise ValueError(f"a picture of {height}x{width} pixels has no area")
    if max(height, width) / min(height, width) > 200:
        raise ValueError(f"a picture of {height}x{width} pixels has an aspect ratio over 200")
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def resize_frames(pixels: np.ndarray, height: int, width: int, interpolation: Interpolation = "bicubic") -> np.ndarray:
    """Resize ``[frames, h, w, 3]`` uint8 pictures; pictures that have the size already are returned as they are."""
    if pixels.shape[1:3] == (height, width):
        return pixels
    resized = [Image.fromarray(frame).resize((width, height), _FILTERS[interpolation]) for frame in pixels]
    return np.stack([np.asarray(frame) for frame in resized])
