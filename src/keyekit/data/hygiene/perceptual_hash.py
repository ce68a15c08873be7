"""Perceptual hashes: 64 bits of a picture that survive resizing, compression and small changes of colour."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

__all__ = ["frame_hashes", "perceptual_hash", "set_bits"]

_SIDE, _KEPT = 32, 8
_FLAT = 4.0


@cache
def _cosines() -> np.ndarray:
    """``[8, 32]``: the lowest frequencies of the discrete cosine transform."""
    frequency, place = np.ogrid[:_KEPT, :_SIDE]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * _SIDE))


def perceptual_hash(picture: np.ndarray) -> int | None:
    """The classic pHash: which of the 64 lowest frequencies of the brightness are above their median.

    Args:
        picture: ``[height, width, 3]`` uint8.

    Returns:
        64 bits, the lowest frequency first; ``None`` for a picture of one brightness, whose bits would be noise.

    Example:
        >>> perceptual_hash(np.zeros((28, 28, 3), np.uint8)) is None
        True
    """
    grey = Image.fromarray(picture).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    brightness = np.asarray(grey, dtype=np.float64)
    if np.ptp(brightness) < _FLAT:
        return None
    spectrum = _cosines() @ brightness @ _cosines().T
    bits = (spectrum > np.median(spectrum)).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def set_bits(hash_value: int) -> frozenset[int]:
    """Positions of the bits that are set; hashes are compared as such sets (Keye-VL 8B sheet 4.5).

    Example:
        >>> sorted(set_bits(0b1010))
        [1, 3]
    """
    return frozenset(place for place in range(64) if hash_value >> place & 1)


def frame_hashes(pictures: list[np.ndarray], frames: int = 8) -> tuple[int, ...]:
    """Hashes of an image, or of some frames of a video.

    Args:
        pictures: Runs of frames, each ``[frames, height, width, 3]`` uint8.
        frames: Frames that are hashed at most, evenly spread.

    Returns:
        One hash for each of these frames; frames of one brightness are left out.
    """
    places = [(run, place) for run in pictures for place in range(len(run))]
    chosen = np.linspace(0, len(places) - 1, min(frames, len(places))).round().astype(int).tolist() if places else []
    hashes = [perceptual_hash(places[index][0][places[index][1]]) for index in chosen]
    return tuple(found for found in hashes if found is not None)
