"""The official config.json both ways."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from keyekit.models.configuration import TOKEN_IDS, network_of, official_config
from keyekit.models.decoder import Decoder
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights import CheckpointError
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.routers import SigmoidBias
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.testing.checkpoint import tiny_checkpoint
from keyekit.testing.tiny import tiny_vision_language_model

FAMILIES = ("Keye", "KeyeVL1_5", "KeyeVL2")


def config_of(folder, family="KeyeVL2") -> dict:
    tiny_checkpoint(folder, family)
    return json.loads((folder / "config.json").read_text())


def build(norm: str = "after", **decoder) -> VisionLanguageModel:
    attend = {"attend": "video" if norm == "before" else "frame"}
    sizes = {
        "vocab_size": 9,
        "dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_groups": 1,
        "head_dim": 16,
        "hidden_dim": 24,
    }
    return VisionLanguageModel(
        KeyeViT(24, 1, 2, 32, image_size=28, **attend),
        MergeProjector(24, 32, norm=norm),
        Decoder(**sizes, rope_section=(2, 4, 2), **decoder),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_released_config_is_written_again(tmp_path, family) -> None:
    config = config_of(tmp_path, family)
    ours = official_config(network_of(config).bfloat16())
    beyond = {"auto_map", "max_position_embeddings"}  # what a network does not know
    for key in config.keys() - beyond - {"vision_config", "rope_scaling"}:
        assert ours[key] == config[key], key
    assert config["vision_config"].items() <= ours["vision_config"].items()
    assert ours["rope_scaling"]["mrope_section"] == [2, 4, 2]
    json.dumps(ours)
    assert official_config(network_of(ours)) == official_config(network_of(config))


def test_full_sizes_say_what_the_sheets_say() -> None:
    """Keye-VL 8B sheet 1.2 and 1.3, Keye-VL-2.0 sheet 2.1 to 2.4."""
    with torch.device("meta"):
        preview = VisionLanguageModel(KeyeViT(attend="video"), MergeProjector(norm="before"), Decoder())
        sparse = Decoder(
            dim=2048,
            num_layers=48,
            num_groups=4,
            hidden_dim=6144,
            attention=DSA,
            feed_forward=MixtureOfExperts,
            rope_theta=1e7,
        )
        second = VisionLanguageModel(KeyeViT(), MergeProjector(dim=2048), sparse)
        third = VisionLanguageModel(KeyeViT(), MergeProjector(), Decoder(rope_theta=8e6))
    expected = {
        "architectures": ["KeyeForConditionalGeneration"],
        "model_type": "Keye",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "max_position_embeddings": 40960,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "max_window_layers": 36,
        "initializer_range": 0.02,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_token_id": 151654,
        "eos_token_id": 151645,
    }
    assert expected.items() <= official_config(preview).items()
    vision = official_config(preview)["vision_config"]
    sizes = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    assert {
        **sizes,
        "patch_size": 14,
        "image_size": 384,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }.items() <= vision.items()
    config = official_config(second)
    assert config["architectures"] == ["KeyeVL2MoeForConditionalGeneration"]
    assert config["model_type"] == "KeyeVL2"
    assert config["rope_scaling"] == {"rope_type": "default", "mrope_section": [16, 24, 24]}
    assert config["sa_config"] == {  # sheet 2.3
        "indexer_head_dim": 64,
        "indexer_num_heads": 16,
        "indexer_num_kv_heads": 1,
        "kv_chunk_size": 512,
        "q_chunk_size": 512,
        "topk": 2048,
    }
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "intermediate_size": 6144}
    assert {
        **experts,
        "norm_topk_prob": True,
        "max_position_embeddings": 262144,
        "rope_theta": 1e7,
    }.items() <= config.items()
    assert official_config(third)["architectures"] == ["KeyeVL1_5ForConditionalGeneration"]
    assert official_config(third)["rope_theta"] == 8e6


def test_variants_of_the_second_version() -> None:
    sparse = partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=8)
    experts = partial(MixtureOfExperts, num_experts=3, active_experts=2, expert_dim=8)
    dense_experts = official_config(build(feed_forward=experts))
    assert dense_experts["architectures"] == ["KeyeVL2MoeForConditionalGeneration"]
    assert "sa_config" not in dense_experts  # sheet 4.2: then it attends densely
    assert official_config(build(attention=sparse))["architectures"] == ["KeyeVL2ForConditionalGeneration"]  # sheet 2.1
    assert official_config(build(tie_embeddings=True))["tie_word_embeddings"] is True
    again = network_of(official_config(build(tie_embeddings=True)))
    assert again.decoder.lm_head.weight is again.decoder.embed_tokens.weight


def test_token_ids_are_the_tokenizer_s() -> None:
    assert not TOKEN_IDS.keys() & official_config(build()).keys()  # a vocabulary of nine words has none of them
    assert official_config(build(), {"image_token_id": 3})["image_token_id"] == 3


class Renamed(KeyeViT):
    """A part of somebody else."""


def test_a_part_without_counterpart_is_named() -> None:
    tiny = tiny_vision_language_model()
    other = VisionLanguageModel(Renamed(32, 1, 2, 48, image_size=56), tiny.projector, tiny.decoder)
    biased = partial(MixtureOfExperts, num_experts=3, active_experts=2, expert_dim=8, router=SigmoidBias)
    shared = partial(MixtureOfExperts, num_experts=3, active_experts=2, expert_dim=8, num_shared_experts=1)
    sparse = partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=8)
    uneven = build()
    uneven.decoder.layers[1] = build(attention=sparse).decoder.layers[1]
    swapped = build()
    swapped.vision = KeyeViT(24, 1, 2, 32, image_size=28, attend="video")
    for network, problem in (
        (nn.Linear(2, 2), "Linear has no counterpart"),
        (other, "the vision encoder Renamed has no counterpart in the released models, which have KeyeViT"),
        (build(feed_forward=biased), "the router SigmoidBias has no counterpart .* SoftmaxTopK"),
        (build(feed_forward=shared), "a shared expert has no counterpart"),
        (build("before", attention=sparse), "sparse attention or experts behind a projector with norm='before'"),
        (uneven, "layer 1, which differs from layer 0"),
        (swapped, r"KeyeViT\(attend='video'\) with norm='after' has no counterpart"),
    ):
        with pytest.raises(ValueError, match=problem):
            official_config(network)


def test_another_architecture_gets_the_allowed_ones(tmp_path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(
        CheckpointError, match="model_type='qwen2_5_vl'; networks are built for Keye, KeyeVL1_5, KeyeVL2"
    ):
        network_of({**config, "model_type": "qwen2_5_vl"})
    with pytest.raises(CheckpointError, match="model_type=None"):
        network_of({})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; the released models have 'silu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"rope_scaling": {"rope_type": "yarn", "mrope_section": [2, 4, 2]}}, "rope_scaling of type 'yarn'"),
        ({"rope_scaling": {"rope_type": "default"}}, "lacks 'mrope_section'"),
        ({"mlp_only_layers": [0]}, "dense layers in mlp_only_layers"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2"),
        ({"sa_config": {"indexer_num_kv_heads": 2}}, "indexer_num_kv_heads=2"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"vision_config": None}, "lacks 'vision_config'"),
    ],
)
def test_variants_that_the_models_do_not_have(tmp_path, change, problem) -> None:
    config = {**config_of(tmp_path), **change}
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(CheckpointError, match=problem):
        network_of(config)


def test_nested_and_newer_spellings_are_read(tmp_path) -> None:
    config = config_of(tmp_path)
    expected = official_config(network_of(config))
    rope = {**config["rope_scaling"], "rope_theta": config["rope_theta"]}
    text = {
        **{k: v for k, v in config.items() if k not in ("rope_scaling", "rope_theta", "vision_config")},
        "rope_parameters": rope,
    }
    nested = {"model_type": "KeyeVL2", "vision_config": config["vision_config"], "text_config": text}
    assert official_config(network_of(nested)) == expected


def test_missing_keys_of_the_indexer_are_those_of_the_released_code(tmp_path) -> None:
    """Keye-VL-2.0 sheet 2.3: heads 4, width 128, topk 2048."""
    config = {**config_of(tmp_path), "head_dim": 256, "sa_config": {"indexer_num_kv_heads": 1}}
    config["rope_scaling"] = {"rope_type": "default", "mrope_section": [32, 64, 32]}
    attention = network_of(config).decoder.layers[0].self_attn
    assert (attention.sa_indexer.num_heads, attention.sa_indexer.head_dim, attention.topk) == (4, 128, 2048)
