"""Preprocessing in one go, against the separate steps and against transformers."""

import numpy as np
import pytest
import torch

from keyekit.data.processing.patchify import normalise_patches, patchify
from keyekit.data.processing.preprocess import picture_patches
from keyekit.data.processing.resize import resize_frames


def pictures(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (3, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("given", "wanted"), [((91, 133), (56, 84)), ((20, 30), (56, 28)), ((56, 84), (56, 84))])
def test_it_is_the_steps_one_after_the_other(given, wanted, interpolation) -> None:
    frames = pictures(*given)
    steps = normalise_patches(patchify(resize_frames(frames, *wanted, interpolation)))
    found = picture_patches(frames, *wanted, interpolation)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, steps, rtol=0, atol=0.0157 if given != wanted else 1e-6)  # two levels of 255
    assert (found - steps).abs().mean() < 2e-3


def test_it_agrees_with_transformers() -> None:
    image_processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_qwen2_vl")
    processor = image_processing.Qwen2VLImageProcessor(
        patch_size=14,
        temporal_patch_size=1,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": 4 * 784, "longest_edge": 6 * 784},
    )
    frames = pictures(181, 259)
    theirs = processor(images=list(frames), return_tensors="pt")
    rows, columns = theirs["image_grid_thw"][0, 1:].tolist()
    merged = theirs["pixel_values"].view(3, rows // 2, columns // 2, 2, 2, -1).transpose(2, 3).flatten(0, 4)
    found = picture_patches(frames, rows * 14, columns * 14).flatten(1)
    torch.testing.assert_close(found, merged, rtol=0, atol=1e-2)


def test_sizes_that_patches_do_not_fill_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fill 50x56"):
        picture_patches(pictures(60, 60), 50, 56)
