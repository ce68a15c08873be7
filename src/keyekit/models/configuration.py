"""The released checkpoints' ``config.json``, from a network and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.distributed.fsdp import FSDPModule

from keyekit.models.decoder import Decoder, DecoderLayer
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights.source import CheckpointError
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.dense import SwiGLU
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.routers import SoftmaxTopK
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT

__all__ = ["MODEL_TYPES", "TOKEN_IDS", "network_of", "official_config"]

MODEL_TYPES = ("Keye", "KeyeVL1_5", "KeyeVL2")
"""The ``model_type`` of Keye-VL-8B-Preview, Keye-VL-1.5-8B and Keye-VL-2.0-30B-A3B."""

TOKEN_IDS: dict[str, int] = {  # Keye-VL 8B sheet 1.2 and 1.8
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
"""Ids of the released tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What is the same in every network of a family and cannot be read off one."""

    architecture: str
    max_positions: int
    rope_type: dict[str, str]
    norm: Literal["before", "after"]
    attend: Literal["video", "frame"]


_FAMILIES = {
    "Keye": _Family(  # Keye-VL 8B sheet 1.2 to 1.4
        architecture="KeyeForConditionalGeneration",
        max_positions=40960,
        rope_type={"type": "mrope"},
        norm="before",
        attend="video",
    ),
    "KeyeVL1_5": _Family(  # Keye-VL 8B sheet 1.2 to 1.4; 4.3 for the length
        architecture="KeyeVL1_5ForConditionalGeneration",
        max_positions=131072,
        rope_type={"type": "mrope"},
        norm="after",
        attend="frame",
    ),
    "KeyeVL2": _Family(  # Keye-VL-2.0 sheet 2.1, 2.2, 2.5, 3
        architecture="KeyeVL2MoeForConditionalGeneration",
        max_positions=262144,
        rope_type={"rope_type": "default"},
        norm="after",
        attend="frame",
    ),
}
_KEYE_2_DENSE = (
    "KeyeVL2ForConditionalGeneration"  # Keye-VL-2.0 sheet 2.1: registered in the released code, no weights known
)
_VISION_EXTRAS = {  # Keye-VL 8B sheet 1.3; temporal_patch_size is written there although frames are never merged
    "spatial_merge_size": 2,
    "tokens_per_second": 2,
    "temporal_patch_size": 2,
}


def official_config(network: nn.Module, token_ids: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The ``config.json`` with which released software builds this network.

    The family follows from the parts: a projector that normalises before the merge makes a Preview, sparse attention or
    experts make a 2.0, the rest is a 1.5.

    Args:
        network: A :class:`VisionLanguageModel` of the released parts, at any size.
        token_ids: Ids of the tokenizer by their keys in the config. By default those of the released tokenizer, if the
            vocabulary has its size.

    Returns:
        Keys and values, ready for JSON.

    Raises:
        ValueError: If a part has no counterpart in the released models.
    """
    if not isinstance(network, VisionLanguageModel):
        raise ValueError(_no_counterpart(type(network).__name__, "VisionLanguageModel"))
    vision, projector, decoder = network.vision, network.projector, network.decoder
    if not isinstance(vision, KeyeViT) or _class_of(vision) is not KeyeViT:
        raise ValueError(_no_counterpart(f"the vision encoder {_class_of(vision).__name__}", "KeyeViT"))
    if not isinstance(projector, MergeProjector) or _class_of(projector) is not MergeProjector:
        raise ValueError(_no_counterpart(f"the projector {_class_of(projector).__name__}", "MergeProjector"))
    model_type = _family_of(vision, projector, decoder.layers[0])  # pyright: ignore[reportArgumentType]
    if token_ids is None:
        token_ids = TOKEN_IDS if decoder.vocab_size > max(TOKEN_IDS.values()) else {}
    return {
        "architectures": [_architecture(model_type, decoder)],
        "model_type": model_type,
        **_decoder_config(decoder, _FAMILIES[model_type]),
        **token_ids,
        "torch_dtype": str(decoder.norm.weight.dtype).removeprefix("torch."),
        "vision_config": _vision_config(vision, projector, model_type),
    }


def network_of(config: Mapping[str, Any]) -> VisionLanguageModel:
    """The network that a released ``config.json`` describes, with initial values.

    Under ``torch.device("meta")`` it takes no memory.

    Args:
        config: The file's content; language keys at the top or, as transformers nests them, under ``text_config``.

    Raises:
        CheckpointError: If it describes another architecture, or a variant that the released models do not use.

    Example:
        >>> with torch.device("meta"):
        ...     again = network_of(official_config(VisionLanguageModel(KeyeViT(), MergeProjector(), Decoder())))
        >>> sum(parameter.numel() for parameter in again.parameters())
        8643848560
    """
    model_type = config.get("model_type")
    if model_type not in _FAMILIES:
        reason = f" ({config['keyekit']['reason']})" if "keyekit" in config else ""
        raise CheckpointError(
            f"config.json has model_type={model_type!r}{reason}; networks are built for {', '.join(MODEL_TYPES)}: "
            "build any other from its recipe and load the weights into it"
        )
    family = _FAMILIES[model_type]
    text = {**config, **config.get("text_config", {})}
    _refuse_variants(text)
    vision = _required(config, "vision_config")
    dim = _required(text, "hidden_size")
    return VisionLanguageModel(
        vision=_vision(vision, family),
        projector=MergeProjector(
            vision_dim=_required(vision, "hidden_size"),
            dim=dim,
            merge=vision.get("spatial_merge_size", 2),
            norm=family.norm,
        ),
        decoder=_decoder(text, dim),
    )


def _family_of(vision: KeyeViT, projector: MergeProjector, layer: DecoderLayer) -> str:
    new = isinstance(layer.self_attn, DSA) or isinstance(layer.mlp, MixtureOfExperts)
    if projector.norm_first and new:
        raise ValueError(
            _no_counterpart("sparse attention or experts behind a projector with norm='before'", "norm='after' there")
        )
    model_type = "Keye" if projector.norm_first else "KeyeVL2" if new else "KeyeVL1_5"
    expected = _FAMILIES[model_type].attend
    if vision.attend != expected:
        norm = _FAMILIES[model_type].norm
        raise ValueError(
            _no_counterpart(
                f"KeyeViT(attend={vision.attend!r}) with norm={norm!r}", f"attend={expected!r} with that norm"
            )
        )
    return model_type


def _architecture(model_type: str, decoder: Decoder) -> str:
    dense = not isinstance(_layers(decoder)[0].mlp, MixtureOfExperts)
    return _KEYE_2_DENSE if model_type == "KeyeVL2" and dense else _FAMILIES[model_type].architecture


def _layers(decoder: Decoder) -> list[DecoderLayer]:
    return list(decoder.layers)  # pyright: ignore[reportReturnType]


def _decoder_config(decoder: Decoder, family: _Family) -> dict[str, Any]:
    described = [_layer_config(layer) for layer in _layers(decoder)]
    for index, other in enumerate(described):
        if other != described[0]:
            raise ValueError(
                _no_counterpart(f"layer {index}, which differs from layer 0,", "layers that are all the same")
            )
    rope = decoder.rope
    return {
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.dim,
        "num_hidden_layers": len(described),
        **described[0],
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": family.max_positions,
        "rope_theta": rope.theta,
        "rope_scaling": {**family.rope_type, "mrope_section": list(rope.section)},
        "tie_word_embeddings": decoder.lm_head.weight is decoder.embed_tokens.weight,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": len(described),
        "initializer_range": 0.02,
        "use_cache": True,
    }


def _class_of(module: nn.Module) -> type:
    """The class that a recipe named; sharding derives another from it."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def _layer_config(layer: DecoderLayer) -> dict[str, Any]:
    attention, feed_forward = layer.self_attn, layer.mlp
    if type(attention) not in (Dense, DSA):
        raise ValueError(_no_counterpart(f"the attention {type(attention).__name__}", "Dense and DSA"))
    if type(feed_forward) not in (SwiGLU, MixtureOfExperts):
        name = type(feed_forward).__name__
        raise ValueError(_no_counterpart(f"the feed-forward {name}", "SwiGLU and MixtureOfExperts"))
    spec = attention.spec
    config: dict[str, Any] = {
        "intermediate_size": spec.hidden_dim,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_groups,
        "head_dim": spec.head_dim,
        "rms_norm_eps": spec.norm_eps,
    }
    if isinstance(feed_forward, MixtureOfExperts):
        config |= _mixture_config(feed_forward)
    if isinstance(attention, DSA):
        config["sa_config"] = {  # Keye-VL-2.0 sheet 2.3; the chunks are the reference implementation's
            "indexer_head_dim": attention.sa_indexer.head_dim,
            "indexer_num_heads": attention.sa_indexer.num_heads,
            "indexer_num_kv_heads": 1,
            "kv_chunk_size": 512,
            "q_chunk_size": 512,
            "topk": attention.topk,
        }
    return config


def _mixture_config(mixture: MixtureOfExperts) -> dict[str, Any]:
    router = mixture.gate
    if type(router) is not SoftmaxTopK:
        raise ValueError(_no_counterpart(f"the router {type(router).__name__}", "SoftmaxTopK"))
    if getattr(mixture, "shared_expert", None) is not None:
        raise ValueError(_no_counterpart("a shared expert", "experts that are all routed"))
    return {  # Keye-VL-2.0 sheet 2.2
        "num_experts": router.spec.num_experts,
        "num_experts_per_tok": router.spec.active_experts,
        "moe_intermediate_size": mixture.experts.down_proj.shape[1],
        "norm_topk_prob": router.normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _vision_config(vision: KeyeViT, projector: MergeProjector, model_type: str) -> dict[str, Any]:
    blocks: Any = vision.encoder["layers"]
    embedding = vision.embeddings.patch_embedding
    side, patch = vision.embeddings.side, vision.patch_size
    return {  # Keye-VL 8B sheet 1.3, Keye-VL-2.0 sheet 2.4
        "model_type": model_type,
        "hidden_size": vision.dim,
        "intermediate_size": blocks[0].mlp.fc1.out_features,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": vision.dim // vision.head_dim,
        "num_channels": embedding.in_channels,
        "patch_size": patch,
        "image_size": 384 if 384 // patch == side else side * patch,  # the released size is no multiple of the patch
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "rope_theta": vision.rope_theta,
        **_VISION_EXTRAS,
        "spatial_merge_size": projector.merge,
    }


def _vision(config: Mapping[str, Any], family: _Family) -> KeyeViT:
    _refuse(config, "hidden_act", "gelu_pytorch_tanh")
    _refuse(config, "layer_norm_eps", 1e-6)
    return KeyeViT(
        dim=_required(config, "hidden_size"),
        num_layers=_required(config, "num_hidden_layers"),
        num_heads=_required(config, "num_attention_heads"),
        hidden_dim=_required(config, "intermediate_size"),
        patch_size=_required(config, "patch_size"),
        image_size=_required(config, "image_size"),
        in_channels=config.get("num_channels", 3),
        rope_theta=float(config.get("rope_theta", 10000.0)),  # Keye-VL-2.0 sheet 3 item 4
        attend=family.attend,
    )


def _decoder(config: Mapping[str, Any], dim: int) -> Decoder:
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return Decoder(
        vocab_size=_required(config, "vocab_size"),
        dim=dim,
        num_layers=_required(config, "num_hidden_layers"),
        num_heads=_required(config, "num_attention_heads"),
        num_groups=_required(config, "num_key_value_heads"),
        head_dim=_required(config, "head_dim"),
        hidden_dim=_required(config, "intermediate_size"),
        attention=_attention(config),
        feed_forward=_feed_forward(config),
        rope_theta=float(config["rope_theta"] if "rope_theta" in config else _required(rope, "rope_theta")),
        rope_section=tuple(_required(rope, "mrope_section")),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_embeddings=config.get("tie_word_embeddings", False),
    )


def _attention(config: Mapping[str, Any]) -> Any:
    sparse = config.get("sa_config")
    if not sparse:  # Keye-VL-2.0 sheet 4.2: without it the whole model attends densely
        return Dense
    _refuse(sparse, "indexer_num_kv_heads", 1)
    return partial(  # Keye-VL-2.0 sheet 2.3: what the released code takes where a key is missing
        DSA,
        topk=sparse.get("topk", 2048),
        num_indexer_heads=sparse.get("indexer_num_heads", 4),
        indexer_head_dim=sparse.get("indexer_head_dim", 128),
    )


def _feed_forward(config: Mapping[str, Any]) -> Any:
    if not config.get("num_experts"):
        return SwiGLU
    _refuse(config, "decoder_sparse_step", 1)
    if config.get("mlp_only_layers"):
        raise CheckpointError("config.json has dense layers in mlp_only_layers; every layer of Keye-VL-2.0 has experts")
    return partial(
        MixtureOfExperts,
        num_experts=config["num_experts"],
        active_experts=_required(config, "num_experts_per_tok"),
        expert_dim=_required(config, "moe_intermediate_size"),
        router=partial(SoftmaxTopK, normalize=config.get("norm_topk_prob", True)),  # Keye-VL-2.0 sheet 2.2
    )


def _refuse_variants(config: Mapping[str, Any]) -> None:
    """What Qwen3's config can say and Keye's networks do not have."""
    _refuse(config, "hidden_act", "silu")
    _refuse(config, "attention_bias", False)
    _refuse(config, "use_sliding_window", False)
    rope = config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise CheckpointError(
            f"config.json has rope_scaling of type {kind!r}; the released models use 'default' or 'mrope'"
        )


def _refuse(config: Mapping[str, Any], key: str, only: Any) -> None:
    if config.get(key, only) != only:
        raise CheckpointError(
            f"config.json has {key}={config[key]!r}; the released models have {only!r}, nothing else is built"
        )


def _required(config: Mapping[str, Any], key: str) -> Any:
    if key not in config:
        raise CheckpointError(f"config.json lacks {key!r}: take the file that belongs to the weights")
    return config[key]


def _no_counterpart(given: str, allowed: str) -> str:
    return (
        f"{given} has no counterpart in the released models, which have {allowed}: no official config.json describes it"
    )
