"""The native-resolution vision transformer."""

import pytest
import torch

from keyekit.nn.vision.keye_vit import KeyeViT


def tiny() -> KeyeViT:
    torch.manual_seed(0)
    return KeyeViT(dim=32, num_layers=2, num_heads=2, hidden_dim=48, image_size=56)


def test_parameter_count_of_the_released_tower() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in KeyeViT().parameters()) == 412_987_248  # Keye-VL 8B sheet 1.7, "ViT core"


def test_packed_equals_unpacked_with_gradients() -> None:
    vit = tiny()
    grids = [(4, 4), (2, 6), (4, 4), (2, 2)]
    patches = torch.randn(sum(r * c for r, c in grids), 3, 14, 14)
    weight = torch.randn(patches.shape[0], 32)
    packed = vit(patches, grids)
    packed_gradients = torch.autograd.grad((packed * weight).sum(), list(vit.parameters()))
    start, alone = 0, []
    for rows, columns in grids:
        alone.append(vit(patches[start : start + rows * columns], [(rows, columns)]))
        start += rows * columns
    unpacked = torch.cat(alone)
    torch.testing.assert_close(packed, unpacked, rtol=1e-4, atol=1e-5)
    for mine, other in zip(
        packed_gradients, torch.autograd.grad((unpacked * weight).sum(), list(vit.parameters())), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_position_matters() -> None:
    patches = torch.randn(1, 3, 14, 14).expand(4, -1, -1, -1)
    features = tiny()(patches, [(2, 2)])
    assert not torch.allclose(features[0], features[1])
    assert not torch.allclose(features[1], features[2])


def test_grids_must_hold_the_patches() -> None:
    with pytest.raises(ValueError, match="hold 4 patches but 5"):
        tiny()(torch.zeros(5, 3, 14, 14), [(2, 2)])
