"""The packed vision tower against PaddleOCR-VL's, which has the same structure, with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from transformers.models.paddleocr_vl.configuration_paddleocr_vl import PaddleOCRVisionConfig
from transformers.models.paddleocr_vl.modeling_paddleocr_vl import PaddleOCRVisionTransformer

from keyekit.nn.vision.keye_vit import KeyeViT

GRIDS = {
    "12 images of 4x4 to 16x12 patches": [(4, 4), (16, 12), (8, 6), (6, 8), (10, 14), (4, 8)] * 2,
    "48 frames of 6x8 patches": [(6, 8)] * 48,
}
PEERS = {
    "alone": "transformers PaddleOCRVisionTransformer, one image a call, sdpa",
    "together": "transformers PaddleOCRVisionTransformer, all images in one call, sdpa",
}


def twins(device: torch.device) -> tuple[KeyeViT, PaddleOCRVisionTransformer]:
    """The same weights twice; larger on a GPU, where a small model times nothing but launches."""
    torch.manual_seed(0)
    width, layers = (192, 4) if device.type == "cpu" else (1152, 8)
    ours = KeyeViT(width, layers, width // 48, 3 * width, patch_size=14, image_size=112)
    config = PaddleOCRVisionConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 48,
        image_size=112,
        patch_size=14,
        attn_implementation="sdpa",
    )
    theirs = PaddleOCRVisionTransformer(config)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(device), theirs.to(device)


@pytest.fixture(scope="module", params=product(GRIDS, PEERS), ids=lambda pair: f"{pair[0].split()[1]}-{pair[1]}")
def encoding(request, training_step, device, dtype) -> dict[str, Callable]:
    media, way = request.param
    vit, reference = twins(device)
    sizes = [rows * columns for rows, columns in GRIDS[media]]
    patches = torch.randn(sum(sizes), 3, 14, 14, device=device)
    grids = torch.tensor([(1, *grid) for grid in GRIDS[media]], device=device)

    def ours() -> Tensor:
        return vit(patches, GRIDS[media])

    def theirs() -> Tensor:
        calls = zip(patches.split(sizes), grids.split(1), strict=True) if way == "alone" else [(patches, grids)]
        outputs = [reference(images[None], grid_thw=grid).last_hidden_state for images, grid in calls]
        return torch.cat([output.flatten(0, -2) for output in outputs])

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-3)
    vit.to(dtype), reference.to(dtype)
    calls = {"keyekit": lambda: training_step(vit, ours), "peer": lambda: training_step(reference, theirs)}
    return calls | {"work": f"KeyeViT, forward and backward, {media}", "name": PEERS[way]}


def test_encoding(encoding, timed, row: str) -> None:
    timed(encoding["work"], encoding[row], peer=encoding["name"])
