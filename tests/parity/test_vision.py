"""KeyeViT and MergeProjector against transformers' PaddleOCR-VL, whose vision tower has the same structure."""

import pytest
import torch

paddle = pytest.importorskip(
    "transformers.models.paddleocr_vl.modeling_paddleocr_vl", reason="needs a recent transformers"
)
configuration = pytest.importorskip("transformers.models.paddleocr_vl.configuration_paddleocr_vl")

from keyekit.nn.projector import MergeProjector  # noqa: E402
from keyekit.nn.vision.keye_vit import KeyeViT  # noqa: E402

GRIDS = [(4, 6), (2, 2), (6, 4), (4, 6)]


def reference_config():
    return configuration.PaddleOCRVisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=70,
        patch_size=14,
        attn_implementation="eager",
    )


def test_encoder_matches_with_gradients() -> None:
    torch.manual_seed(0)
    reference = paddle.PaddleOCRVisionTransformer(reference_config()).eval()
    ours = KeyeViT(dim=48, num_layers=2, num_heads=4, hidden_dim=80, patch_size=14, image_size=70)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ours.load_state_dict({name: t for name, t in reference.state_dict().items() if name in ours.state_dict()})
    patches = torch.randn(sum(rows * columns for rows, columns in GRIDS), 3, 14, 14)
    theirs = reference(patches[None], grid_thw=torch.tensor([(1, *grid) for grid in GRIDS])).last_hidden_state
    mine = ours(patches, GRIDS)
    torch.testing.assert_close(mine, theirs.reshape(mine.shape), rtol=1e-4, atol=1e-4)

    weight = torch.randn_like(mine)
    (mine * weight).sum().backward()
    (theirs.reshape(mine.shape) * weight).sum().backward()
    gradients = dict(reference.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-3, atol=1e-3)


def test_projector_before_the_merge_matches() -> None:
    torch.manual_seed(0)
    config = type(
        "Config", (), {"vision_config": reference_config(), "text_config": type("Text", (), {"hidden_size": 40})}
    )
    reference = paddle.PaddleOCRProjector(config)
    ours = MergeProjector(vision_dim=48, dim=40, norm="before")
    ours.load_state_dict(reference.state_dict())
    features = torch.randn(sum(rows * columns for rows, columns in GRIDS), 48)
    theirs = reference(features, torch.tensor([(1, *grid) for grid in GRIDS]))
    torch.testing.assert_close(ours(features, GRIDS), theirs)
