"""Sizes and positions against transformers' Qwen2-VL, whose rules Keye-VL inherits."""

import numpy as np
import pytest
import torch

image_processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
modeling = pytest.importorskip("transformers.models.qwen2_vl.modeling_qwen2_vl")

from keyekit.data.processing.patchify import normalise_patches, patchify  # noqa: E402
from keyekit.data.processing.resize import smart_resize  # noqa: E402
from keyekit.nn.rope.positions import VisualSpan, multimodal_positions, rope_delta  # noqa: E402

LIMITS = [(4 * 784, 16384 * 784), (3136, 1_003_520), (48 * 784, 107 * 784), (64 * 784, 65 * 784)]


@pytest.mark.parametrize("limits", LIMITS)
def test_smart_resize(limits) -> None:
    # from 15 pixels on: smaller sides are one token in Keye-VL, and none in Qwen2-VL
    sides = np.random.default_rng(0).integers(15, 4000, (2000, 2)).tolist()
    sides += [[side, other] for side in (15, 27, 28, 41, 42, 43, 70, 98, 1003) for other in (28, 55, 56, 1400)]
    compared = 0
    for height, width in sides:
        if max(height, width) / min(height, width) > 200:
            continue
        theirs = image_processing.smart_resize(height, width, factor=28, min_pixels=limits[0], max_pixels=limits[1])
        assert smart_resize(height, width, *limits) == tuple(theirs), (height, width)
        compared += 1
    assert compared > 1500


class Config:
    """What the position code reads of a Qwen2-VL configuration."""

    class vision_config:
        spatial_merge_size = 2


def theirs(kinds: list[int], images: list[tuple[int, int]], videos: list[tuple[int, int]]):
    """Positions and delta of transformers: kinds are 0 for text, 1 for an image, 2 for a frame; grids are merged."""
    model = object.__new__(modeling.Qwen2VLModel)
    torch.nn.Module.__init__(model)
    model.config = Config()  # pyright: ignore[reportAttributeAccessIssue]
    grids = [torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns in part]) for part in (images, videos)]
    positions, delta = model.get_rope_index(
        torch.zeros(1, len(kinds), dtype=torch.int64),
        torch.tensor([kinds]),
        image_grid_thw=grids[0] if images else None,
        video_grid_thw=grids[1] if videos else None,
    )
    return positions[:, 0], int(delta)


@pytest.mark.parametrize("seed", range(8))
def test_positions_of_images_and_single_frames(seed: int) -> None:
    random = np.random.default_rng(seed)
    kinds, spans, images, videos = [], [], [], []
    for _ in range(6):
        kinds += [0] * int(random.integers(1, 9))
        rows, columns = random.integers(1, 9, 2).tolist()
        kind = int(random.integers(1, 3))
        (images if kind == 1 else videos).append((rows, columns))
        spans.append(VisualSpan(start=len(kinds), rows=rows, columns=columns))
        kinds += [kind] * (rows * columns)
    kinds += [0] * int(random.integers(1, 9))
    ours = multimodal_positions(len(kinds), spans)
    expected, delta = theirs(kinds, images, videos)
    assert torch.equal(ours, expected)
    assert rope_delta(ours) == delta


def test_positions_of_text() -> None:
    ours = multimodal_positions(7, [])
    expected, delta = theirs([0] * 7, [], [])
    assert torch.equal(ours, expected)
    assert rope_delta(ours) == delta == 0


def test_patches_hold_the_numbers_of_the_image_processor() -> None:
    """Qwen2-VL's processor orders patches in squares and doubles frames in time; Keye-VL's are row-major and single."""
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    processor = image_processing.Qwen2VLImageProcessor(
        do_resize=False, image_mean=[0.5] * 3, image_std=[0.5] * 3, patch_size=14, merge_size=2, temporal_patch_size=1
    )
    output = processor(images=[pixels], return_tensors="pt", input_data_format="channels_last")
    assert output["image_grid_thw"].tolist() == [[1, 4, 6]]
    squares = output["pixel_values"].reshape(2, 3, 2, 2, 3, 14, 14)  # rows, columns of squares, then inside a square
    row_major = squares.permute(0, 2, 1, 3, 4, 5, 6).reshape(24, 3, 14, 14)
    torch.testing.assert_close(normalise_patches(patchify(pixels[None])), row_major, rtol=0, atol=1e-6)
