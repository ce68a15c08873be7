"""SigLIP 2's tower on packed patches against transformers' own padded batch."""

import pytest
import torch

from keyekit.nn.vision.siglip_vit import SiglipViT

GRIDS = [(2, 4), (3, 3), (2, 4), (1, 2)]


def test_equals_a_padded_batch_of_transformers_with_gradients() -> None:
    torch.manual_seed(0)
    vit = SiglipViT(dim=32, num_layers=2, num_heads=2, hidden_dim=48, image_size=56)
    images = [torch.randn(3, rows * 14, columns * 14) for rows, columns in GRIDS]
    patches, padded = [], torch.zeros(4, 9, 14 * 14 * 3)
    for number, (image, (rows, columns)) in enumerate(zip(images, GRIDS, strict=True)):
        squares = [image[:, r * 14 : r * 14 + 14, c * 14 : c * 14 + 14] for r in range(rows) for c in range(columns)]
        patches += squares
        for place, square in enumerate(squares):
            padded[number, place] = square.movedim(0, -1).flatten()
    lengths = torch.tensor([r * c for r, c in GRIDS])
    mask = (torch.arange(9) < lengths[:, None]).long()
    theirs = vit.model(pixel_values=padded, pixel_attention_mask=mask, spatial_shapes=torch.tensor(GRIDS))
    expected = theirs.last_hidden_state[mask.bool()]
    mine = vit(torch.stack(patches), GRIDS)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(mine)
    parameters = list(vit.parameters())
    gradients = [torch.autograd.grad((out * weight).sum(), parameters) for out in (mine, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


SIZES = {"dim": 32, "num_layers": 1, "num_heads": 2, "hidden_dim": 64, "image_size": 56}


def test_weights_come_from_a_local_folder(tmp_path) -> None:
    trained = SiglipViT(**SIZES)
    trained.model.save_pretrained(tmp_path)
    loaded = SiglipViT(**SIZES, weights=str(tmp_path))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_weights_that_do_not_fit_are_refused(tmp_path) -> None:
    SiglipViT(**SIZES).model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="do not fit the sizes given"):
        SiglipViT(**SIZES | {"hidden_dim": 48}, weights=str(tmp_path))
    with pytest.raises(ValueError, match=r"lacks .* tensors"):
        SiglipViT(**SIZES | {"num_layers": 2}, weights=str(tmp_path))
