"""KeyeViT without rotation, and AttentionPooling, against transformers' SigLIP vision tower with the same weights."""

import pytest
import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig, SiglipVisionModel

from keyekit.batch import ContrastiveBatch, Segments, VisionBatch
from keyekit.models.contrastive import ContrastiveModel
from keyekit.models.weights import load_weights
from keyekit.nn.text.tower import TextTower
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.nn.vision.pooling import AttentionPooling

IMAGES, SIDE, PATCH = 3, 5, 14
GRIDS = [(SIDE, SIDE)] * IMAGES


def relative_error(mine: Tensor, theirs: Tensor) -> float:
    return ((mine - theirs).norm() / theirs.norm()).item()


@pytest.fixture
def towers() -> tuple[KeyeViT, AttentionPooling, SiglipVisionModel]:
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
        attn_implementation="eager",
    )
    reference = SiglipVisionModel(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    names = {name.removeprefix("vision_model."): tensor for name, tensor in reference.state_dict().items()}
    vit = KeyeViT(48, 3, 4, 80, PATCH, SIDE * PATCH, rope=False, interpolate=False)
    pooling = AttentionPooling(48, 4, 80)
    vit.load_state_dict({name: tensor for name, tensor in names.items() if not name.startswith("head.")})
    pooling.load_state_dict(
        {name.removeprefix("head."): tensor for name, tensor in names.items() if name.startswith("head.")}
    )
    return vit, pooling, reference


def images_and_patches() -> tuple[Tensor, Tensor]:
    images = torch.randn(IMAGES, 3, SIDE * PATCH, SIDE * PATCH)
    squares = images.unflatten(3, (SIDE, PATCH)).unflatten(2, (SIDE, PATCH))  # [N, C, row, p, column, p]
    return images, squares.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def test_features_hidden_states_and_pooled_vector_match(towers) -> None:
    vit, pooling, reference = towers
    images, patches = images_and_patches()
    hidden: list[Tensor] = [vit.embeddings(patches, GRIDS)]
    for block in vit.encoder["layers"]:
        block.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    with torch.no_grad():
        features = vit(patches, GRIDS)
        pooled = pooling(features, GRIDS)
        theirs = reference(images, output_hidden_states=True)
    assert relative_error(features, theirs.last_hidden_state.flatten(0, 1)) <= 1e-5
    assert relative_error(pooled, theirs.pooler_output) <= 1e-5
    assert len(hidden) == len(theirs.hidden_states) == 4
    for mine, other in zip(hidden, theirs.hidden_states, strict=True):
        assert relative_error(mine, other.flatten(0, 1)) <= 1e-5


def test_every_gradient_matches(towers) -> None:
    vit, pooling, reference = towers
    images, patches = images_and_patches()
    features = vit(patches, GRIDS)
    weight, pooled_weight = torch.randn_like(features), torch.randn(IMAGES, 48)
    ((features * weight).sum() + (pooling(features, GRIDS) * pooled_weight).sum()).backward()
    theirs = reference(images)
    loss = (theirs.last_hidden_state.flatten(0, 1) * weight).sum() + (theirs.pooler_output * pooled_weight).sum()
    loss.backward()
    expected = {name.removeprefix("vision_model."): p.grad for name, p in reference.named_parameters()}
    mine = dict(vit.named_parameters()) | {f"head.{name}": p for name, p in pooling.named_parameters()}
    assert mine.keys() == expected.keys()
    # A key's bias moves every score of a query alike: its gradient is zero but for rounding, in both.
    for name in mine:
        if name.endswith("k_proj.bias"):
            assert mine[name].grad.norm() <= 1e-4
        elif name == "head.attention.in_proj_bias":
            keep = torch.cat([torch.arange(48), torch.arange(96, 144)])
            assert relative_error(mine[name].grad[keep], expected[name][keep]) <= 1e-5, name
        else:
            assert relative_error(mine[name].grad, expected[name]) <= 1e-5, name


def test_a_whole_siglip_checkpoint_gives_the_same_logits(tmp_path) -> None:
    """Stage 0 starts from it: both towers, the pooling, temperature and bias (Keye-VL 8B sheet 4.2)."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = SiglipTextConfig(vocab_size=20, max_position_embeddings=4, projection_size=48, **sizes)
    vision = SiglipVisionConfig(image_size=SIDE * PATCH, patch_size=PATCH, **sizes)
    reference = SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    reference.save_pretrained(tmp_path)

    tower = TextTower(20, 48, 2, 4, 80, 4, pad_token=1)
    model = ContrastiveModel(KeyeViT(48, 2, 4, 80, PATCH, SIDE * PATCH, rope=False, interpolate=False), tower, 4, 80)
    load_weights(model, tmp_path, strict=True)

    images, patches = images_and_patches()
    tokens = torch.randint(2, 20, (IMAGES, 4))
    batch = ContrastiveBatch(
        vision=VisionBatch(patches=patches, grids=tuple(GRIDS)),
        tokens=tokens.flatten(),
        segments=Segments.of([4] * IMAGES),
        identities=torch.arange(IMAGES),
    )
    with torch.no_grad():
        logits = model.logits(*model(batch))
        expected = reference(tokens, images).logits_per_image
    assert relative_error(logits, expected) <= 1e-5
