"""A checkpoint folder with the names and the structure of the released ones, of a few kilobytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["tiny_checkpoint"]

_VISION_DIM, _VISION_HIDDEN, _DIM, _VOCABULARY, _LAYERS = 24, 32, 32, 41, 2
_HEADS, _GROUPS, _HEAD_DIM, _HIDDEN = 4, 2, 16, 40
_EXPERTS, _EXPERT_DIM, _INDEXER_HEADS, _INDEXER_DIM = 3, 24, 2, 8
_Shapes = Iterator[tuple[str, tuple[int, ...]]]


def tiny_checkpoint(
    folder: Path,
    family: Literal["Keye", "KeyeVL1_5", "KeyeVL2"] = "KeyeVL2",
    experts: Literal["fused", "separate"] = "fused",
    shards: int = 3,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Write random weights as the released checkpoints have them, with tensors that no model uses, config and tokenizer.

    The names are written out from the sheets, and the files by the safetensors library: a test that reads the folder compares
    with something independent of the reader.

    Args:
        folder: Where to; made if it is not there.
        family: Whose structure.
        experts: How 2.0's experts are stored.
        shards: Files; one without an index, or several with one.
        dtype: Of the weights.
        seed: Of the values.

    Returns:
        The tensors by their names in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = [*_vision(family), *_projector(family), *_decoder(family, experts)]
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes}
    names = list(tensors)
    files = {"model.safetensors": names}
    if shards > 1:
        step = -(-len(names) // shards)
        parts = [names[start : start + step] for start in range(0, len(names), step)]
        files = {f"model-{i:05}-of-{len(parts):05}.safetensors": part for i, part in enumerate(parts, start=1)}
        weight_map = {name: file for file, part in files.items() for name in part}
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(family, dtype), indent=2))
    (folder / "tokenizer.json").write_text("{}")
    return tensors


def _vision(family: str) -> _Shapes:
    """Keye-VL-2.0 sheet 5; the Preview also ships SigLIP's pooling head (Keye-VL 8B sheet 1.7)."""
    stem, dim = "visual.vision_model", _VISION_DIM
    yield f"{stem}.embeddings.patch_embedding.weight", (dim, 3, 14, 14)
    yield f"{stem}.embeddings.patch_embedding.bias", (dim,)
    yield f"{stem}.embeddings.position_embedding.weight", (16, dim)
    yield f"{stem}.embeddings.packing_position_embedding.weight", (64, dim)
    for part in ("layer_norm1", "layer_norm2"):
        yield from _biased(f"{stem}.encoder.layers.0.{part}", (dim,))
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _biased(f"{stem}.encoder.layers.0.self_attn.{part}", (dim, dim))
    yield from _biased(f"{stem}.encoder.layers.0.mlp.fc1", (_VISION_HIDDEN, dim))
    yield from _biased(f"{stem}.encoder.layers.0.mlp.fc2", (dim, _VISION_HIDDEN))
    yield from _biased(f"{stem}.post_layernorm", (dim,))
    if family == "Keye":
        yield f"{stem}.head.probe", (1, 1, dim)
        yield from _biased(f"{stem}.head.layernorm", (dim,))


def _projector(family: str) -> _Shapes:
    """Keye-VL 8B sheet 1.4: the Preview normalises patches, the later ones what four of them make."""
    merged = 4 * _VISION_DIM
    yield from _biased("mlp_AR.pre_norm", (_VISION_DIM if family == "Keye" else merged,))
    yield from _biased("mlp_AR.linear_1", (merged, merged))
    yield from _biased("mlp_AR.linear_2", (_DIM, merged))


def _decoder(family: str, experts: str) -> _Shapes:
    """Keye-VL-2.0 sheet 5."""
    yield "model.embed_tokens.weight", (_VOCABULARY, _DIM)
    for layer in range(_LAYERS):
        stem = f"model.layers.{layer}"
        yield f"{stem}.input_layernorm.weight", (_DIM,)
        yield f"{stem}.post_attention_layernorm.weight", (_DIM,)
        for name, rows in (("q_proj", _HEADS), ("k_proj", _GROUPS), ("v_proj", _GROUPS)):
            yield f"{stem}.self_attn.{name}.weight", (rows * _HEAD_DIM, _DIM)
        yield f"{stem}.self_attn.o_proj.weight", (_DIM, _HEADS * _HEAD_DIM)
        yield f"{stem}.self_attn.q_norm.weight", (_HEAD_DIM,)
        yield f"{stem}.self_attn.k_norm.weight", (_HEAD_DIM,)
        yield from _indexer(f"{stem}.self_attn.sa_indexer") if family == "KeyeVL2" else ()
        yield from _experts(f"{stem}.mlp", experts) if family == "KeyeVL2" else _swiglu(f"{stem}.mlp", _HIDDEN)
    yield "model.norm.weight", (_DIM,)
    yield "lm_head.weight", (_VOCABULARY, _DIM)


def _indexer(stem: str) -> _Shapes:
    yield f"{stem}.q_proj.weight", (_INDEXER_HEADS * _INDEXER_DIM + _INDEXER_HEADS, _DIM)
    yield f"{stem}.k_proj.weight", (_INDEXER_DIM, _DIM)
    yield f"{stem}.q_norm.weight", (_INDEXER_DIM,)
    yield from _biased(f"{stem}.k_norm", (_INDEXER_DIM,))


def _experts(stem: str, form: str) -> _Shapes:
    yield f"{stem}.gate.weight", (_EXPERTS, _DIM)
    if form == "fused":
        yield f"{stem}.experts.gate_up_proj", (_EXPERTS, _DIM, 2 * _EXPERT_DIM)
        yield f"{stem}.experts.down_proj", (_EXPERTS, _EXPERT_DIM, _DIM)
        return
    for expert in range(_EXPERTS):
        yield from _swiglu(f"{stem}.experts.{expert}", _EXPERT_DIM)


def _swiglu(stem: str, hidden: int) -> _Shapes:
    yield f"{stem}.gate_proj.weight", (hidden, _DIM)
    yield f"{stem}.up_proj.weight", (hidden, _DIM)
    yield f"{stem}.down_proj.weight", (_DIM, hidden)


def _biased(stem: str, shape: tuple[int, ...]) -> _Shapes:
    yield f"{stem}.weight", shape
    yield f"{stem}.bias", shape[:1]


def _config(family: str, dtype: torch.dtype) -> dict:
    """Keye-VL 8B sheet 1.2 and 1.3, Keye-VL-2.0 sheet 2, with the sizes above."""
    architecture = {"Keye": "Keye", "KeyeVL1_5": "KeyeVL1_5", "KeyeVL2": "KeyeVL2Moe"}[family]
    config = {
        "architectures": [f"{architecture}ForConditionalGeneration"],
        "model_type": family,
        "auto_map": {"AutoConfig": "configuration_keye.KeyeConfig"},
        "hidden_size": _DIM,
        "intermediate_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _GROUPS,
        "head_dim": _HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "rope_theta": 10000000 if family == "KeyeVL2" else 1000000,
        "rope_scaling": {"rope_type" if family == "KeyeVL2" else "type": "default", "mrope_section": [2, 4, 2]},
        "max_position_embeddings": 1234,
        "vocab_size": _VOCABULARY,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vision_config": {
            "hidden_size": _VISION_DIM,
            "intermediate_size": _VISION_HIDDEN,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "patch_size": 14,
            "image_size": 56,
            "num_channels": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "spatial_merge_size": 2,
        },
    }
    if family == "KeyeVL2":
        config |= {
            "num_experts": _EXPERTS,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": _EXPERT_DIM,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "sa_config": {
                "indexer_head_dim": _INDEXER_DIM,
                "indexer_num_heads": _INDEXER_HEADS,
                "indexer_num_kv_heads": 1,
                "kv_chunk_size": 512,
                "q_chunk_size": 512,
                "topk": 8,
            },
        }
    return config
