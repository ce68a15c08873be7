"""How alike frames are: OpenCV's colours, cosines, black frames."""

import colorsys
import hashlib
import math

import numpy as np

from keyekit.data.processing.similarity import frame_similarity, hsv_patches, repeats, rgb_to_hsv


def solid(*colour: int, height: int = 280, width: int = 280) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


WHITE, DARK, BLACK = solid(255, 255, 255), solid(60, 0, 0), solid(0, 0, 0)


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4096, 3), dtype=np.uint8)


def test_hsv_is_the_formula_rounded() -> None:
    rgb = np.concatenate([colours(), np.eye(3, dtype=np.uint8) * 255, [[0, 0, 0], [255, 255, 255], [7, 7, 7]]]).astype(
        np.uint8
    )
    hue, saturation, value = np.array([colorsys.rgb_to_hsv(*(pixel / 255)) for pixel in rgb]).T
    found = rgb_to_hsv(rgb).astype(int)
    turn = np.abs(found[:, 0] - hue * 180)
    assert np.minimum(turn, 180 - turn).max() < 1  # half a step, and what fixed point loses
    assert np.abs(found[:, 1] - saturation * 255).max() < 0.6
    np.testing.assert_array_equal(found[:, 2], rgb.max(axis=1))
    assert found[:, 0].max() < 180
    assert np.allclose(value * 255, found[:, 2])


def test_hsv_is_opencv_to_the_bit() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(1, -1, 3)
    digest = hashlib.sha256(np.ascontiguousarray(rgb_to_hsv(rgb)).tobytes()).hexdigest()
    # of cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV), OpenCV 5.0.0
    assert digest == "17d015b0e2005a2548a0746373ffc8e075495af198fd224e1f9636be91ad2e3f"


def test_patches_are_squares_of_the_resized_frame() -> None:
    frame = np.zeros((280, 280, 3), np.uint8)
    frame[28:56, 56:84] = 255  # second row, third column of ten
    patches = hsv_patches(frame)
    assert patches.shape == (100, 28 * 28 * 3)
    assert patches.any(axis=1).nonzero()[0].tolist() == [12]
    assert hsv_patches(solid(1, 2, 3, height=1080, width=1920)).shape[0] <= 256
    assert hsv_patches(solid(1, 2, 3, height=28, width=28)).shape[0] >= 48


def test_similarity_is_the_share_of_patches_with_a_large_cosine() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 40, 12)).astype(np.float32)
    second[:25] = first[:25] + 0.5 * random.normal(size=(25, 12))
    first[:3] = second[:3] = 0.0  # black in both: not counted
    first[3] = 0.0  # black in one: not similar
    alike = [
        float(a @ b) / math.sqrt(float(a @ a) * float(b @ b) + 1e-12) > 0.7
        for a, b in zip(first[3:].astype(float), second[3:].astype(float), strict=True)
    ]
    assert 0 < sum(alike) < len(alike)
    assert frame_similarity(first, second) == sum(alike) / 37


def test_frames_are_compared_with_the_last_new_one() -> None:
    half = WHITE.copy()
    half[:140] = DARK[:140]
    assert list(repeats([WHITE, WHITE, DARK, DARK, WHITE], 0.9)) == [False, True, False, True, False]
    assert list(repeats([WHITE, half, DARK], 0.9)) == [False, False, False]
    assert list(repeats([WHITE, half, DARK], 0.4)) == [False, True, False]  # both with the first frame
    assert list(repeats([], 0.9)) == []


def test_two_black_frames_repeat_each_other() -> None:
    assert math.isnan(frame_similarity(hsv_patches(BLACK), hsv_patches(BLACK)))
    assert list(repeats([BLACK, BLACK, WHITE, BLACK], 0.9)) == [False, True, False, False]


def test_a_threshold_decides_at_the_boundary() -> None:
    changed = WHITE.copy()
    changed[:28, :280] = DARK[:28]  # one of ten rows: nine tenths are similar
    assert frame_similarity(hsv_patches(WHITE), hsv_patches(changed)) == 0.9
    assert list(repeats([WHITE, changed], 0.9)) == [False, True]  # not below the released threshold
    assert list(repeats([WHITE, changed], 0.95)) == [False, False]  # below the paper's
