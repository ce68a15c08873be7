"""Weights go in under the official names, whole, converted, regrouped and spread over ranks."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import fully_shard

from keyekit.models.configuration import network_of
from keyekit.models.contrastive import ContrastiveModel
from keyekit.models.decoder import Decoder
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights import CheckpointError, load_weights, official_name, save_weights
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.projector import MergeProjector
from keyekit.nn.text.tower import TextTower
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.testing.checkpoint import tiny_checkpoint
from keyekit.testing.distributed import run_distributed

PACKING = "visual.vision_model.embeddings.packing_position_embedding.weight"


def network(seed: int, tie: bool = False) -> VisionLanguageModel:
    torch.manual_seed(seed)
    decoder = Decoder(40, 32, 1, 2, 1, 32, 48, rope_section=(4, 6, 6), tie_embeddings=tie)
    return VisionLanguageModel(KeyeViT(24, 1, 2, 32, image_size=28), MergeProjector(24, 32), decoder)


def described(folder) -> VisionLanguageModel:
    return network_of(json.loads((folder / "config.json").read_text()))


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


@pytest.mark.parametrize("family", ["Keye", "KeyeVL1_5", "KeyeVL2"])
@pytest.mark.parametrize("experts", ["fused", "separate"])
def test_every_tensor_of_a_released_folder_finds_its_parameter(tmp_path, family, experts) -> None:
    tensors = tiny_checkpoint(tmp_path, family, experts)
    model = described(tmp_path)
    report = load_weights(model, tmp_path, strict=True)
    values = {official_name(name): tensor for name, tensor in model.state_dict().items()}
    assert PACKING in report.passengers
    assert len(report.converted) == len(report.loaded) == len(values)
    assert report.regrouped == tuple(sorted(n for n in values if ".experts." in n and experts == "separate"))
    assert f"{len(values)} changed dtype (" in str(report)
    for name, tensor in tensors.items():
        if name in values:
            assert torch.equal(values[name], tensor.float()), name
    if experts == "separate" and family == "KeyeVL2":
        stem = "model.layers.1.mlp.experts"
        up = tensors[f"{stem}.2.up_proj.weight"].float()
        assert torch.equal(values[f"{stem}.gate_up_proj"][2, :, 24:], up.T)
        assert "4 put together from single experts" in str(report)


def test_a_dense_checkpoint_begins_with_fresh_indexers(tmp_path) -> None:
    tiny_checkpoint(tmp_path, "KeyeVL1_5")
    dense = described(tmp_path)
    load_weights(dense, tmp_path)

    def build() -> Decoder:
        spec = dense.decoder.layers[0].self_attn.spec
        sparse = partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=8)
        return Decoder(41, 32, 2, 4, 2, 16, 40, rope_section=spec.rope.section, attention=sparse)

    with torch.device("meta"):
        on_meta = VisionLanguageModel(dense.vision, dense.projector, build())
    for model in (VisionLanguageModel(dense.vision, dense.projector, build()), on_meta):
        before = {} if model is on_meta else {name: tensor.clone() for name, tensor in model.state_dict().items()}
        report = load_weights(model, tmp_path)
        assert report.new_indexers == report.missing
        assert len(report.missing) == 10
        assert report.missing[0] == "model.layers.0.self_attn.sa_indexer.q_proj.weight"
        assert "the sparse attention of 2 layers starts with freshly initialised indexers" in str(report)
        indexer = model.decoder.layers[1].self_attn.sa_indexer
        assert indexer.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
        assert indexer.k_norm.weight.eq(1).all()
        assert indexer.k_norm.bias.eq(0).all()
        for name in before:
            if "sa_indexer" in name:
                assert torch.equal(model.state_dict()[name], before[name])


def test_a_network_on_meta_gets_memory_dtype_and_values(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path)
    for dtype in (None, torch.float32):
        with torch.device("meta"):
            model = described(tmp_path)
        report = load_weights(model, tmp_path, dtype=dtype, strict=True)
        assert bool(report.converted) == (dtype is not None)
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == (dtype or torch.bfloat16)
            assert torch.equal(tensor.bfloat16(), tensors[official_name(name)]), name


def test_strict_loading_names_what_differs(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path, shards=1)
    model = described(tmp_path)
    del tensors["model.norm.weight"]
    save_file({**tensors, "mtp.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing are model\.norm\.weight; unexpected are mtp\.weight"):
        load_weights(model, tmp_path, strict=True)
    report = load_weights(model, tmp_path)
    assert report.missing == ("model.norm.weight",)
    assert report.unexpected == ("mtp.weight",)


def test_dtypes_that_do_not_convert_are_named_and_nothing_was_changed(tmp_path) -> None:
    tensors = tiny_checkpoint(tmp_path, shards=1)
    model = described(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, tmp_path / "model.safetensors")
    problem = (
        r"layers\.1\.self_attn\.v_proj\.weight is torch\.int8 in .*model\.safetensors but torch\.float32 in the model"
    )
    with pytest.raises(CheckpointError, match=problem):
        load_weights(model, tmp_path)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"is torch\.bfloat16 in .* but torch\.float32 in the model, and convert=False"
    ):
        load_weights(model, tmp_path, convert=False)
    assert all(torch.equal(before[n], tensor) for n, tensor in model.state_dict().items())
    assert load_weights(model.bfloat16(), tmp_path, convert=False).converted == ()


@pytest.mark.parametrize("tie", [False, True])
def test_export_then_import_is_the_identity(tmp_path, tie: bool) -> None:
    source, target = network(0, tie), network(1, tie)
    save_weights(source, tmp_path)
    report = load_weights(target, tmp_path)
    assert report.missing == ()
    assert report.unexpected == ()
    for (name, a), b in zip(source.state_dict().items(), target.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_tied_networks_take_one_or_two_equal_tensors(tmp_path) -> None:
    save_weights(network(0, tie=True), tmp_path)
    assert load_weights(network(1), tmp_path).missing == ("lm_head.weight",)
    tensors = load_file(tmp_path / "model.safetensors")
    both = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(both, tmp_path / "model.safetensors")
    target = network(1, tie=True)
    assert load_weights(target, tmp_path).missing == ()
    assert torch.equal(target.decoder.lm_head.weight, both["lm_head.weight"])
    save_weights(network(0), tmp_path)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight and model\.embed_tokens\.weight in .* differ"):
        load_weights(network(1, tie=True), tmp_path)


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


def test_wrong_folders_and_shapes_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_weights(network(0), tmp_path)
    save_weights(nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match="no tensor in"):
        load_weights(network(0), tmp_path)
    save_weights(
        VisionLanguageModel(KeyeViT(24, 1, 2, 40, image_size=28), MergeProjector(24, 32), network(0).decoder), tmp_path
    )
    problem = r"mlp\.fc1\.weight is \[40, 24\] in .*model\.safetensors but \[32, 24\] in the model: .* sizes differ"
    with pytest.raises(ValueError, match=problem):
        load_weights(network(0), tmp_path)


def _load_sharded(rank: int, world_size: int, folder, on_meta: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(rank)
    with torch.device("meta" if on_meta else "cpu"):
        model = described(folder)
    for layer in model.decoder.layers:
        fully_shard(layer)
    fully_shard(model)
    report = load_weights(model, folder, strict=True)
    assert report.passengers == (PACKING,)
    assert len(report.loaded) == len(model.state_dict())
    return {official_name(name): tensor.full_tensor() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("experts", ["fused", "separate"])
@pytest.mark.parametrize("on_meta", [False, True])
def test_each_rank_fills_its_own_uneven_shards(tmp_path, experts, on_meta) -> None:
    tiny_checkpoint(tmp_path, experts=experts, dtype=torch.float32)
    model = described(tmp_path)  # three experts and 41 words do not divide by two ranks
    load_weights(model, tmp_path)
    for values in run_distributed(_load_sharded, 2, tmp_path, on_meta):
        for name, tensor in model.state_dict().items():
            assert torch.equal(values[official_name(name)], tensor), name
