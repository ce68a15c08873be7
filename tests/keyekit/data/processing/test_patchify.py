"""Patches: order, normalisation, round trip."""

import numpy as np
import torch

from keyekit.data.processing.patchify import normalise_patches, patchify, unpatchify


def test_patches_are_row_major_with_channels_first() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 28, 42, 3), dtype=np.uint8)
    patches = patchify(pixels)
    assert patches.shape == (12, 3, 14, 14)
    for number, (frame, row, column) in enumerate((f, r, c) for f in range(2) for r in range(2) for c in range(3)):
        cut = pixels[frame, row * 14 : row * 14 + 14, column * 14 : column * 14 + 14]
        assert torch.equal(patches[number], torch.from_numpy(cut.transpose(2, 0, 1).copy()))


def test_normalisation_and_round_trip() -> None:
    pixels = np.arange(28 * 28 * 3, dtype=np.uint32).astype(np.uint8).reshape(1, 28, 28, 3)
    patches = normalise_patches(patchify(pixels))
    expected = (patchify(pixels).double() / 255 - 0.5) / 0.5  # Keye-VL 8B sheet 2.1 item 4
    torch.testing.assert_close(patches.double(), expected, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(unpatchify(patches, 2, 2), pixels[0])
