"""Patches and tokens."""

import pytest

from keyekit.data.processing.geometry import KEYE_PATCHES, PatchGeometry


def test_keye_merges_two_by_two_patches_of_14() -> None:
    assert (KEYE_PATCHES.token_side, KEYE_PATCHES.token_pixels) == (28, 784)
    assert KEYE_PATCHES.grid(560, 1008) == (20, 36)
    assert KEYE_PATCHES.tokens(560, 1008) == 720


def test_the_architecture_figure() -> None:
    # Keye-VL 8B sheet 2.3: 168x252 pixels at 18 seconds are 36, 18 or 9 frames of 54 tokens: time is not merged
    assert [frames * KEYE_PATCHES.tokens(168, 252) for frames in (36, 18, 9)] == [1944, 972, 486]


def test_other_patches() -> None:
    geometry = PatchGeometry(patch_size=16, merge_size=3)
    assert (geometry.token_side, geometry.grid(96, 144)) == (48, (2, 3))
    with pytest.raises(ValueError, match="must be at least 1"):
        PatchGeometry(merge_size=0)
