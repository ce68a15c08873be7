"""The released models to the parameter, and their twins to the structure."""

from __future__ import annotations

import math
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from keyekit.cli.plan_subject import subject_of
from keyekit.models.presets import (
    PRESETS,
    keye_vl_1_5_8b,
    keye_vl_2_30b_a3b,
    keye_vl_2_30b_a3b_tiny,
    keye_vl_8b,
    preset,
)
from keyekit.models.weights.names import is_passenger, official_name
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.testing.tiny import tiny_batch

ROOT = Path(__file__).parents[3]
TINY = [name for name in PRESETS if name.endswith("_tiny")]
RELEASED = [name for name in PRESETS if name not in TINY]


def on_meta(build) -> nn.Module:
    with torch.device("meta"):
        return build()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "used", "shipped", "projector"),
    [
        ("keye_vl_8b", 8_643_841_648, 8_696_828_736, 40_119_040),  # Keye-VL 8B sheet 1.7
        ("keye_vl_1_5_8b", 8_643_848_560, 8_696_835_648, 40_125_952),  # sheet 1.7: the projector's 6,912 more
        ("keye_vl_2_30b_a3b", 31_084_333_424, 31_122_082_160, 30_686_720),  # Keye-VL-2.0 sheet 2.6
    ],
)
def test_parameter_identities(name, used, shipped, projector) -> None:
    network = on_meta(PRESETS[name].build)
    assert count(network) == used
    assert used + sum(math.prod(shape) for shape in PRESETS[name].unused.values()) == shipped
    assert count(network.projector) == projector


def test_the_blocks_of_the_8b() -> None:  # Keye-VL 8B sheet 1.7
    network = on_meta(keye_vl_8b)
    assert count(network.vision) == 412_987_248
    assert count(network.decoder) == 8_190_735_360


def test_the_blocks_of_2_0() -> None:  # Keye-VL-2.0 sheet 2.6
    network = on_meta(keye_vl_2_30b_a3b)
    layer, vision = network.decoder.layers[0], network.vision
    projections = [layer.self_attn.projection.get_submodule(f"{name}_proj") for name in "qkv"]
    assert sum(map(count, [*projections, layer.self_attn.o_proj])) == 18_874_368
    assert count(layer.self_attn.projection.q_norm) + count(layer.self_attn.projection.k_norm) == 256
    assert count(layer.input_layernorm) + count(layer.post_attention_layernorm) == 4_096
    assert count(layer.mlp.gate) == 262_144
    assert count(layer.mlp.experts) == 603_979_776
    assert count(layer.self_attn.sa_indexer) == 2_261_184
    assert count(layer) == 625_381_824
    assert count(network.decoder) == 30_640_659_456
    assert count(network.decoder.embed_tokens) == count(network.decoder.lm_head) == 311_164_928
    assert count(vision.embeddings.patch_embedding) == 678_528
    assert count(vision.embeddings.position_embedding) == 839_808
    assert {count(block) for block in vision.encoder["layers"]} == {15_239_504}
    (packing,) = PRESETS["keye_vl_2_30b_a3b"].unused.values()
    assert math.prod(packing) == 37_748_736
    assert count(vision) + math.prod(packing) == 450_735_984


@pytest.mark.parametrize("name", RELEASED)
def test_what_ships_unused_is_no_parameter_and_converts_as_a_passenger(name) -> None:
    assert all(is_passenger(tensor) for tensor in PRESETS[name].unused)
    own = {official_name(parameter) for parameter, _ in on_meta(PRESETS[name].build).named_parameters()}
    assert not own & set(PRESETS[name].unused)


def attributes(network: nn.Module) -> dict[str, Any]:
    """Every plain attribute of every module: numbers, texts, records."""
    plain = (bool, int, float, str, tuple, type(None))
    return {
        f"{path}.{name}": value
        for path, module in network.named_modules()
        for name, value in vars(module).items()
        if not name.startswith("_") and (isinstance(value, plain) or is_dataclass(value))
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PRESETS)
def test_the_recipe_piece_is_the_same_network(name) -> None:
    ours = on_meta(PRESETS[name].build)
    piece = subject_of(str(ROOT / f"recipes/_base/models/{name}.yaml"), []).network
    shapes = {key: tensor.shape for key, tensor in piece.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in ours.state_dict().items()}
    assert attributes(piece) == attributes(ours)
    assert [type(module) for module in piece.modules()] == [type(module) for module in ours.modules()]


@pytest.mark.parametrize("name", TINY)
def test_a_twin_has_the_structure_and_trains(name) -> None:
    torch.manual_seed(0)
    twin, large = PRESETS[name].build(), on_meta(PRESETS[name.removesuffix("_tiny")].build)
    assert 1e6 < count(twin) < 3e6
    assert {type(module) for module in twin.modules()} == {type(module) for module in large.modules()}
    names = {parameter for parameter, _ in twin.named_parameters()}
    assert names < {parameter for parameter, _ in large.named_parameters()}
    assert twin.vision.attend == large.vision.attend
    assert twin.projector.norm_first == large.projector.norm_first
    rope, wide = twin.decoder.rope, large.decoder.rope
    assert rope.theta == wide.theta
    assert wide.scaled_section(rope.head_dim) == rope.section

    output = twin(tiny_batch(lengths=(40, 37)))
    losses = output.hidden.square().mean() + sum(output.losses.values())
    losses.backward()
    silent = [key for key, parameter in twin.named_parameters() if parameter.grad is None]
    assert silent == ["decoder.lm_head.weight"]


def test_choices_are_arguments() -> None:
    assert on_meta(lambda: keye_vl_8b(video_attention="frame")).vision.attend == "frame"
    assert on_meta(lambda: keye_vl_1_5_8b(rope_theta=1e6)).decoder.rope.theta == 1e6
    dense = keye_vl_2_30b_a3b_tiny(attention="dense", vocab_size=100)
    assert {type(layer.self_attn) for layer in dense.decoder.layers} == {Dense}
    assert dense.decoder.lm_head.out_features == 100
    sparse = keye_vl_2_30b_a3b_tiny(kl_weight=4.0).decoder.layers[0].self_attn
    assert isinstance(sparse, DSA)
    assert sparse.kl_weight == 4.0


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'keye_vl_8b'\?; there are keye_vl_8b, "):
        preset("keye-vl-8b")
