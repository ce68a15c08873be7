"""Weights go out and in under the official names."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from keyekit.models.contrastive import ContrastiveModel, TextTower
from keyekit.models.decoder import Decoder
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights import load_weights, official_name, save_weights
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT


def network(seed: int, tie: bool = False) -> VisionLanguageModel:
    torch.manual_seed(seed)
    decoder = Decoder(40, 32, 1, 2, 1, 32, 48, rope_section=(4, 6, 6), tie_embeddings=tie)
    return VisionLanguageModel(KeyeViT(24, 1, 2, 32, image_size=28), MergeProjector(24, 32), decoder)


def test_official_names() -> None:
    names = {official_name(name) for name, _ in network(0).named_parameters()}
    assert {  # Keye-VL 8B sheet 1.6, Keye-VL-2.0 sheet 5
        "visual.vision_model.embeddings.patch_embedding.weight",
        "visual.vision_model.encoder.layers.0.self_attn.q_proj.bias",
        "visual.vision_model.post_layernorm.weight",
        "mlp_AR.pre_norm.weight",
        "mlp_AR.linear_2.bias",
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.mlp.gate_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    } <= names


@pytest.mark.parametrize("tie", [False, True])
def test_export_then_import_is_the_identity(tmp_path, tie: bool) -> None:
    source, target = network(0, tie), network(1, tie)
    save_weights(source, tmp_path)
    report = load_weights(target, tmp_path)
    assert report.missing == ()
    assert report.unexpected == ()
    for (name, a), b in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_vision_tower_moves_from_the_contrastive_model(tmp_path) -> None:
    torch.manual_seed(5)
    text = TextTower(20, 24, 1, 2, 32, 4)
    contrastive = ContrastiveModel(KeyeViT(24, 1, 2, 32, image_size=28), text, 2, 32)
    save_weights(contrastive, tmp_path)
    target = network(0)
    report = load_weights(target, tmp_path)
    assert torch.equal(target.vision.post_layernorm.weight, contrastive.vision.post_layernorm.weight)
    assert all(name.startswith("visual.vision_model.") for name in report.loaded)
    assert {name.split(".")[0] for name in report.missing} == {"model", "lm_head", "mlp_AR"}
    assert "text_model" in str(report)


def test_shards_with_an_index_are_read(tmp_path) -> None:
    source, target = network(0), network(1)
    save_weights(source, tmp_path / "one")
    tensors = sorted(load_file(tmp_path / "one" / "model.safetensors").items())
    halves = (dict(tensors[::2]), dict(tensors[1::2]))
    for number, half in enumerate(halves):
        save_file(half, tmp_path / f"part{number}.safetensors")
    index = {"weight_map": {name: f"part{number}.safetensors" for number, half in enumerate(halves) for name in half}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_weights(target, tmp_path).missing == ()
    assert torch.equal(source.decoder.lm_head.weight, target.decoder.lm_head.weight)


def test_wrong_folders_and_shapes_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_weights(network(0), tmp_path)
    save_weights(nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match="no tensor in"):
        load_weights(network(0), tmp_path)
    save_weights(
        VisionLanguageModel(KeyeViT(24, 1, 2, 40, image_size=28), MergeProjector(24, 32), network(0).decoder), tmp_path
    )
    with pytest.raises(ValueError, match="sizes differ"):
        load_weights(network(0), tmp_path)
