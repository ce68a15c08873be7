"""Batches of equally shaped images."""

import pytest
import torch

from keyekit.nn.vision.grouping import encode_by_shape


def test_equal_shapes_share_a_call_and_the_order_stays() -> None:
    grids = [(2, 3), (3, 2), (2, 3), (1, 1)]
    patches = torch.arange(19.0)[:, None, None, None].expand(-1, 3, 2, 2)
    calls = []

    def encode(images: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        calls.append((len(images), shape))
        return images[..., 0, 0, 0, None]

    assert torch.equal(encode_by_shape(patches, grids, encode)[:, 0], torch.arange(19.0))
    assert calls == [(2, (2, 3)), (1, (3, 2)), (1, (1, 1))]


def test_grids_must_hold_the_patches() -> None:
    with pytest.raises(ValueError, match="hold 4 patches but 5"):
        encode_by_shape(torch.zeros(5, 3, 2, 2), [(2, 2)], lambda images, shape: images)
    with pytest.raises(ValueError, match="no grids"):
        encode_by_shape(torch.zeros(0, 3, 2, 2), [], lambda images, shape: images)
