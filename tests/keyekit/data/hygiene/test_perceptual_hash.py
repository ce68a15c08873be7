"""Perceptual hashes against the transform written out, and against what pictures go through."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from keyekit.data.hygiene.perceptual_hash import frame_hashes, perceptual_hash, set_bits


def picture(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    """Smooth blobs of colour."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def distance(first: int | None, second: int | None) -> int:
    assert first is not None
    assert second is not None
    return (first ^ second).bit_count()


def test_the_transform_written_out() -> None:
    given = picture(0)
    grey = np.asarray(Image.fromarray(given).convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    spectrum = [
        sum(
            grey[y, x] * math.cos(math.pi * v * (2 * y + 1) / 64) * math.cos(math.pi * u * (2 * x + 1) / 64)
            for y in range(32)
            for x in range(32)
        )
        for v in range(8)
        for u in range(8)
    ]
    middle = (sorted(spectrum)[31] + sorted(spectrum)[32]) / 2
    assert perceptual_hash(given) == int("".join("1" if value > middle else "0" for value in spectrum), 2)


@pytest.mark.parametrize("seed", range(5))
def test_it_survives_what_does_not_change_a_picture(seed: int) -> None:
    given = picture(seed)
    small = np.asarray(Image.fromarray(given).resize((60, 45), Image.Resampling.BILINEAR))
    data = io.BytesIO()
    Image.fromarray(given).save(data, "JPEG", quality=50)
    brighter = np.clip(given.astype(int) + 8, 0, 255).astype(np.uint8)
    for other in (small, np.asarray(Image.open(data)), brighter):
        assert distance(perceptual_hash(given), perceptual_hash(other)) <= 4
    assert distance(perceptual_hash(given), perceptual_hash(picture(seed + 100))) > 12
    assert distance(perceptual_hash(given), perceptual_hash(given[:, ::-1])) > 12


def test_frames_are_spread_and_flat_ones_left_out() -> None:
    video = np.stack([picture(seed) for seed in range(20)])
    assert frame_hashes([video], frames=3) == tuple(perceptual_hash(video[place]) for place in (0, 10, 19))
    assert frame_hashes([video[:2], video[2:4, :60, :80]], frames=8) == tuple(
        perceptual_hash(frame) for frame in (*video[:2], *video[2:4, :60, :80])
    )
    assert frame_hashes([np.full((2, 28, 28, 3), 9, np.uint8)]) == ()
    assert frame_hashes([]) == ()


def test_half_of_the_bits_are_set() -> None:
    value = perceptual_hash(picture(1))
    assert value is not None
    assert len(set_bits(value)) == 32
    assert sum(1 << place for place in set_bits(value)) == value
