"""How alike two frames are: the share of their patches that point the same way in colour space (Keye-VL 8B sheet 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from keyekit.data.processing.geometry import KEYE_PATCHES
from keyekit.data.processing.resize import resize_frames, smart_resize

__all__ = ["frame_similarity", "hsv_patches", "repeats", "rgb_to_hsv"]

_MIN_TOKENS, _MAX_TOKENS = 48, 256  # Keye-VL 8B sheet 3.2 item 2: frames are compared at this size
_BLACK = 0.01  # norm of a patch below which it is black
_SHIFT = 12  # OpenCV converts eight-bit pictures in fixed point with so many bits
_DIVISORS = np.arange(1, 256)
_SATURATION = np.concatenate([[0], np.rint((255 << _SHIFT) / _DIVISORS)]).astype(np.int32)
_HUE = np.concatenate([[0], np.rint((180 << _SHIFT) / (6.0 * _DIVISORS))]).astype(np.int32)


def rgb_to_hsv(pixels: np.ndarray) -> np.ndarray:
    """Hue (0..179), saturation and value (0..255) of ``[..., 3]`` uint8 RGB pixels, to the bit as OpenCV has them.

    Example:
        >>> rgb_to_hsv(np.array([[255, 0, 0], [0, 0, 255]], dtype=np.uint8)).tolist()
        [[0, 255, 255], [120, 255, 255]]
    """
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)
    half = 1 << (_SHIFT - 1)
    saturation = (spread * _SATURATION[value] + half) >> _SHIFT
    sixths = np.where(
        value == red, green - blue, np.where(value == green, blue - red + 2 * spread, red - green + 4 * spread)
    )
    hue = (sixths * _HUE[spread] + half) >> _SHIFT
    return np.stack([np.where(hue < 0, hue + 180, hue), saturation, value], axis=-1).astype(np.uint8)


def hsv_patches(frame: np.ndarray, side: int = KEYE_PATCHES.token_side) -> np.ndarray:
    """Patches ``[patches, side * side * 3]`` float32 in HSV of a frame ``[height, width, 3]`` uint8 RGB, at comparison size."""
    pixels = side * side
    given_height, given_width, _ = frame.shape
    height, width = smart_resize(given_height, given_width, _MIN_TOKENS * pixels, _MAX_TOKENS * pixels, factor=side)
    hsv = rgb_to_hsv(resize_frames(frame[None], height, width, "bilinear")[0])
    grid = hsv.reshape(height // side, side, width // side, side, 3).swapaxes(1, 2)
    return grid.reshape(-1, pixels * 3).astype(np.float32)


def frame_similarity(first: np.ndarray, second: np.ndarray, patch_similarity: float = 0.7) -> float:
    """Share of the patches of two frames whose cosine is above a threshold.

    Args:
        first: :func:`hsv_patches` of a frame.
        second: The same of another frame of the same size.
        patch_similarity: Cosine above which two patches are alike.

    Returns:
        Between 0 and 1, over the patches that are not black in both frames; NaN if all are.
    """
    norms = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    seen = (norms[0] >= _BLACK) | (norms[1] >= _BLACK)
    if not seen.any():
        return float("nan")
    cosine = (first * second).sum(axis=1) / np.maximum(norms[0] * norms[1], 1e-8)
    return float((cosine[seen] > patch_similarity).mean())


def repeats(frames: Iterable[np.ndarray], similarity: float, patch_similarity: float = 0.7) -> Iterator[bool]:
    """Say for each frame whether it repeats the last one that did not (Keye-VL 8B sheet 3.2 items 2 and 3).

    Args:
        frames: Pictures ``[height, width, 3]`` uint8 RGB in the order of time.
        similarity: Share of similar patches below which a frame is new. Two black frames have none to compare and repeat each
            other.
        patch_similarity: Cosine above which two patches are alike.

    Yields:
        ``False`` for the first frame and every new one, ``True`` for a repetition.
    """
    last: np.ndarray | None = None
    for frame in frames:
        patches = hsv_patches(frame)
        if last is None or frame_similarity(last, patches, patch_similarity) < similarity:
            last = patches
            yield False
        else:
            yield True
