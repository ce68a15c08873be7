"""Sizes: every test vector of the sheets."""

import numpy as np
import pytest
import torch
from PIL import Image

from keyekit.data.processing.resize import resize_frames, smart_resize


@pytest.mark.parametrize(
    ("size", "expected", "tokens"),
    [  # Keye-VL 8B sheet 2.1: util limits
        ((28, 28), (56, 56), 4),
        ((28, 140), (28, 140), 5),
        ((384, 384), (392, 392), 196),
        ((480, 640), (476, 644), 391),
        ((1080, 1920), (1092, 1932), 2691),
        ((3192, 4004), (3192, 4004), 16302),
    ],
)
def test_util_limits(size, expected, tokens: int) -> None:
    assert smart_resize(*size, min_pixels=4 * 784, max_pixels=16384 * 784) == expected
    assert expected[0] * expected[1] // 784 == tokens


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((56, 56), (56, 56)),
        ((28, 140), (28, 140)),
        ((392, 392), (392, 392)),
        ((476, 644), (476, 644)),
        ((1092, 1932), (728, 1316)),
        ((3192, 4004), (868, 1120)),
    ],
)
def test_the_processor_resizes_again(size, expected) -> None:
    # Keye-VL 8B sheet 2.1 item 3: limits 3136 and 1,003,520 pixels
    assert smart_resize(*size, min_pixels=3136, max_pixels=1_003_520) == expected


@pytest.mark.parametrize(
    ("cap", "expected"), [(256, (336, 588)), (255, (308, 588)), (129, (224, 420)), (65, (168, 280))]
)
def test_frames_under_a_budget(cap: int, expected) -> None:
    # Keye-VL-2.0 sheet 16 item 8: a 1920x1080 frame
    assert smart_resize(1080, 1920, min_pixels=64 * 784, max_pixels=cap * 784) == expected


def test_extreme_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="aspect ratio over 200"):
        smart_resize(10, 2010, 784, 10**9)
    with pytest.raises(ValueError, match="no area"):
        smart_resize(0, 10, 784, 10**9)


def test_resizing_is_pil_bicubic_and_skipped_when_the_size_fits() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), dtype=np.uint8)
    assert resize_frames(frames, 40, 60) is frames
    expected = np.asarray(Image.fromarray(frames[1]).resize((28, 56), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_frames(frames, 56, 28)[1], expected)


def test_the_filter_can_be_bilinear() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(frames[0]).resize((28, 56), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_frames(frames, 56, 28, "bilinear")[0], expected)
    assert (resize_frames(frames, 56, 28, "bilinear") != resize_frames(frames, 56, 28)).any()


def test_bilinear_is_torchs_antialiased_interpolation() -> None:
    # Keye-VL 8B sheet 3.2: slow and fast frames are resized so; to the rounding of eight bits
    frames = np.random.default_rng(0).integers(0, 256, (1, 90, 160, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(pixels, (56, 84), mode="bilinear", antialias=True)
    found = torch.from_numpy(resize_frames(frames, 56, 84, "bilinear")).permute(0, 3, 1, 2).float()
    assert (found - expected).abs().max() < 1.01
