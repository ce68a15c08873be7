"""timm's transformers on packed patches against timm's own forward of whole images."""

import pytest
import torch
from safetensors.torch import save_file

from keyekit.nn.vision.timm_vit import TimmViT

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
MODELS = {
    "class token": ("vit_tiny_patch16_224", SMALL | {"img_size": 56}),
    "no prefix": ("vit_so400m_patch14_siglip_224", SMALL | {"img_size": 56}),
    "registers": ("vit_small_patch14_reg4_dinov2", SMALL | {"img_size": 56}),
    "naflex": ("naflexvit_base_patch16_gap", SMALL),
}
GRIDS = [(2, 4), (3, 3), (2, 4), (4, 4)]


@pytest.mark.parametrize("name", MODELS)
def test_equals_timm_on_every_image_with_gradients(name: str) -> None:
    torch.manual_seed(0)
    model, arguments = MODELS[name]
    vit = TimmViT(model, arguments=arguments).eval()
    images = [torch.randn(3, rows * 14, columns * 14) for rows, columns in GRIDS]
    patches = [
        image[:, r * 14 : r * 14 + 14, c * 14 : c * 14 + 14]
        for image, (rows, columns) in zip(images, GRIDS, strict=True)
        for r in range(rows)
        for c in range(columns)
    ]
    outputs = [vit.model.forward_features(image[None]) for image in images]
    outputs = [output["patches"] if isinstance(output, dict) else output for output in outputs]
    expected = torch.cat([output[0, vit.model.num_prefix_tokens :] for output in outputs])
    mine = vit(torch.stack(patches), GRIDS)
    assert mine.shape == (41, 32)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    weight = torch.randn_like(mine)
    parameters = [parameter for parameter in vit.parameters() if parameter.requires_grad]
    gradients = [torch.autograd.grad((out * weight).sum(), parameters) for out in (mine, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_a_model_without_patches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot build .resnet18.*choose a vision transformer"):
        TimmViT("resnet18", arguments={"global_pool": "avg"})


@pytest.mark.parametrize("model", ["eva02_tiny_patch14_224", "deit3_small_patch16_224"])
def test_other_transformers_over_patches_are_welcome(model: str) -> None:
    vit = TimmViT(model, arguments={"img_size": 56, "embed_dim": 32, "depth": 1, "num_heads": 2})
    patches = torch.randn(4 + 6, 3, 14, 14)
    whole = vit(patches, [(2, 2), (2, 3)])
    torch.testing.assert_close(whole[4:], vit(patches[4:], [(2, 3)]))
    whole.sum().backward()
    assert all(parameter.grad is not None for name, parameter in vit.named_parameters() if "mask_token" not in name)


def test_a_norm_after_pooling_becomes_that_of_the_patches() -> None:
    vit = TimmViT("vit_tiny_patch16_224", arguments=SMALL | {"img_size": 56, "fc_norm": True})
    features = vit(torch.randn(4, 3, 14, 14), [(2, 2)])
    assert isinstance(vit.model.norm, torch.nn.LayerNorm)
    torch.testing.assert_close(features.mean(-1), torch.zeros(4), rtol=0, atol=1e-5)


def test_a_network_that_is_no_transformer_over_patches_is_named() -> None:
    arguments = {"img_size": 56, "embed_dim": 32, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2}
    with pytest.raises(ValueError, match=r"SwinTransformer.*one feature per patch|cannot build"):
        TimmViT("swin_tiny_patch4_window7_224", arguments=arguments)


def test_weights_come_from_a_local_file(tmp_path) -> None:
    arguments = SMALL | {"img_size": 56}
    trained = TimmViT("vit_tiny_patch16_224", arguments=arguments)
    file = tmp_path / "model.safetensors"
    save_file(trained.model.state_dict(), file)
    loaded = TimmViT("vit_tiny_patch16_224", arguments=arguments, weights=str(file))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
