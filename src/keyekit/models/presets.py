"""The released Keye models by name, each with a tiny twin of the same structure.

Where the paper and the released code disagree, the default is what the released model does; the other value is an argument
(Keye-VL 8B sheet 9, Keye-VL-2.0 sheet 13). ``recipes/_base/models`` holds the same models as recipe pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from keyekit.models.decoder import Decoder
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.registry import closest

__all__ = [
    "PRESETS",
    "Preset",
    "keye_vl_1_5_8b",
    "keye_vl_1_5_8b_tiny",
    "keye_vl_2_30b_a3b",
    "keye_vl_2_30b_a3b_tiny",
    "keye_vl_8b",
    "keye_vl_8b_tiny",
    "preset",
]

VOCABULARY = 151_936  # Keye-VL 8B sheet 1.2, Keye-VL-2.0 sheet 2.2
TINY_VOCABULARY = 512  # the tokenizer of the tiny recipes


def keye_vl_8b(
    *, video_attention: Literal["video", "frame"] = "video", vocab_size: int = VOCABULARY
) -> VisionLanguageModel:
    """Keye-VL-8B-Preview (Keye-VL 8B sheet 1): 8,643,841,648 parameters in use.

    Args:
        video_attention: What a patch of a video sees in the vision tower: the whole ``video`` (released code; the paper does
            not say) or its own ``frame`` (vLLM's port, 1.5 and 2.0).
        vocab_size: Rows of the embedding.
    """
    return VisionLanguageModel(
        # Sheet 1.3; every size is KeyeViT's default.
        vision=KeyeViT(attend=video_attention),
        # Sheet 1.4: the Preview normalises patches before they are merged.
        projector=MergeProjector(vision_dim=1152, dim=4096, norm="before"),
        decoder=_qwen3_8b(vocab_size, rope_theta=1e6),
    )


def keye_vl_1_5_8b(*, rope_theta: float = 8e6, vocab_size: int = VOCABULARY) -> VisionLanguageModel:
    """Keye-VL-1.5-8B (Keye-VL 8B sheet 1): 8,643,848,560 parameters in use.

    Args:
        rope_theta: Base of the decoder's rotary frequencies: 8,000,000 since the 128K stage, 1,000,000 before it (sheet 1.2).
        vocab_size: Rows of the embedding.
    """
    return VisionLanguageModel(
        vision=KeyeViT(),
        projector=MergeProjector(vision_dim=1152, dim=4096, norm="after"),  # sheet 1.4
        decoder=_qwen3_8b(vocab_size, rope_theta),
    )


def keye_vl_2_30b_a3b(
    *,
    attention: Literal["sparse", "dense"] = "sparse",
    kl_weight: float = 1.0,
    indexer_heads: int = 16,
    indexer_dim: int = 64,
    topk: int = 2048,
    vocab_size: int = VOCABULARY,
) -> VisionLanguageModel:
    """Keye-VL-2.0-30B-A3B (Keye-VL-2.0 sheet 2): 31,084,333,424 parameters in use.

    Args:
        attention: ``sparse``, or ``dense`` as the released server runs where its kernels do not (sheet 4.2); a dense model has
            no indexers, and can be the start of a sparse one.
        kl_weight: Factor on the indexers' loss. It compares with the mean over key/value groups; the paper sums over the four,
            which has the same gradient at 4.0 (sheet 9.3).
        indexer_heads: Heads of an indexer. The released code falls back to 4 where its configuration is silent; the shipped
            configuration says 16 (sheet 2.3 and 13 item 4).
        indexer_dim: Width of an indexer head; likewise 128 and 64.
        topk: Keys that a query reads.
        vocab_size: Rows of the embedding.
    """
    sparse = partial(DSA, topk=topk, num_indexer_heads=indexer_heads, indexer_head_dim=indexer_dim, kl_weight=kl_weight)
    return VisionLanguageModel(
        vision=KeyeViT(),  # sheet 2.4
        projector=MergeProjector(vision_dim=1152, dim=2048, norm="after"),  # sheet 2.5
        decoder=Decoder(  # sheet 2.2
            vocab_size=vocab_size,
            dim=2048,
            num_layers=48,
            num_heads=32,
            num_groups=4,
            head_dim=128,
            hidden_dim=6144,  # of a dense layer, which the model does not have
            attention=Dense if attention == "dense" else sparse,
            feed_forward=partial(MixtureOfExperts, num_experts=128, active_experts=8, expert_dim=768),
            # The released code's fallbacks are 1e6 (attention) and 8e6 (indexer); the shipped configuration says 1e7.
            rope_theta=1e7,
            rope_section=(16, 24, 24),
        ),
    )


def keye_vl_8b_tiny(
    *, video_attention: Literal["video", "frame"] = "video", vocab_size: int = TINY_VOCABULARY
) -> VisionLanguageModel:
    """The structure of :func:`keye_vl_8b` in about a million and a half parameters.

    Args:
        video_attention: As there.
        vocab_size: Rows of the embedding.
    """
    return VisionLanguageModel(
        vision=_tiny_vision(video_attention),
        projector=MergeProjector(vision_dim=96, dim=128, norm="before"),
        decoder=_qwen3_8b_tiny(vocab_size, rope_theta=1e6),
    )


def keye_vl_1_5_8b_tiny(*, rope_theta: float = 8e6, vocab_size: int = TINY_VOCABULARY) -> VisionLanguageModel:
    """The structure of :func:`keye_vl_1_5_8b` in about a million and a half parameters.

    Args:
        rope_theta: As there.
        vocab_size: Rows of the embedding.
    """
    return VisionLanguageModel(
        vision=_tiny_vision("frame"),
        projector=MergeProjector(vision_dim=96, dim=128, norm="after"),
        decoder=_qwen3_8b_tiny(vocab_size, rope_theta),
    )


def keye_vl_2_30b_a3b_tiny(
    *,
    attention: Literal["sparse", "dense"] = "sparse",
    kl_weight: float = 1.0,
    topk: int = 32,
    vocab_size: int = TINY_VOCABULARY,
) -> VisionLanguageModel:
    """The structure of :func:`keye_vl_2_30b_a3b` in about two and a quarter million parameters.

    One expert in sixteen is active, an indexer head is half as wide as an attention head, heads are together twice as wide as
    the model: as in the large one.

    Args:
        attention: As there.
        kl_weight: As there.
        topk: Keys that a query reads.
        vocab_size: Rows of the embedding.
    """
    sparse = partial(DSA, topk=topk, num_indexer_heads=4, indexer_head_dim=16, kl_weight=kl_weight)
    return VisionLanguageModel(
        vision=_tiny_vision("frame"),
        projector=MergeProjector(vision_dim=96, dim=128, norm="after"),
        decoder=Decoder(
            vocab_size=vocab_size,
            dim=128,
            num_layers=4,
            num_heads=8,
            num_groups=2,
            head_dim=32,
            hidden_dim=384,
            attention=Dense if attention == "dense" else sparse,
            feed_forward=partial(MixtureOfExperts, num_experts=32, active_experts=2, expert_dim=24),
            rope_theta=1e7,
            rope_section=(4, 6, 6),
        ),
    )


def _qwen3_8b(vocab_size: int, rope_theta: float) -> Decoder:
    """Keye-VL 8B sheet 1.2."""
    return Decoder(
        vocab_size=vocab_size,
        dim=4096,
        num_layers=36,
        num_heads=32,
        num_groups=8,
        head_dim=128,
        hidden_dim=12288,
        rope_theta=rope_theta,
        rope_section=(16, 24, 24),
    )


def _qwen3_8b_tiny(vocab_size: int, rope_theta: float) -> Decoder:
    return Decoder(
        vocab_size=vocab_size,
        dim=128,
        num_layers=4,
        num_heads=8,
        num_groups=2,
        head_dim=16,
        hidden_dim=384,
        rope_theta=rope_theta,
        rope_section=(2, 3, 3),
    )


def _tiny_vision(attend: Literal["video", "frame"]) -> KeyeViT:
    return KeyeViT(dim=96, num_layers=3, num_heads=4, hidden_dim=360, image_size=112, attend=attend)


_PACKING_TABLE = {  # Keye-VL 8B sheet 1.3, Keye-VL-2.0 sheet 2.4: used only when interpolation is off, which it never is
    "visual.vision_model.embeddings.packing_position_embedding.weight": (32768, 1152),
}
_POOLING_HEAD = {  # Keye-VL 8B sheet 1.3 and 1.7: SigLIP's MAP head, which the released forward pass never calls
    "visual.vision_model.head.probe": (1, 1, 1152),
    "visual.vision_model.head.attention.in_proj_weight": (3456, 1152),
    "visual.vision_model.head.attention.in_proj_bias": (3456,),
    "visual.vision_model.head.attention.out_proj.weight": (1152, 1152),
    "visual.vision_model.head.attention.out_proj.bias": (1152,),
    "visual.vision_model.head.layernorm.weight": (1152,),
    "visual.vision_model.head.layernorm.bias": (1152,),
    "visual.vision_model.head.mlp.fc1.weight": (4304, 1152),
    "visual.vision_model.head.mlp.fc1.bias": (4304,),
    "visual.vision_model.head.mlp.fc2.weight": (1152, 4304),
    "visual.vision_model.head.mlp.fc2.bias": (1152,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model by name.

    Args:
        name: Its name.
        title: Name of the released model.
        build: Makes the network with its defaults; the function of the same name takes the choices.
        context: Tokens of the longest sequence.
        unused: Official names and shapes of tensors that the released checkpoint holds and the forward pass never uses. They
            ride along when weights are converted and are parameters of no network.
    """

    name: str
    title: str
    build: Callable[[], VisionLanguageModel]
    context: int
    unused: dict[str, tuple[int, ...]] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    entry.name: entry
    for entry in (
        Preset(
            name="keye_vl_8b",
            title="Keye-VL-8B-Preview",
            build=keye_vl_8b,
            context=40_960,  # Keye-VL 8B sheet 1.2, max_position_embeddings
            unused=_PACKING_TABLE | _POOLING_HEAD,
        ),
        Preset(
            name="keye_vl_1_5_8b",
            title="Keye-VL-1.5-8B",
            build=keye_vl_1_5_8b,
            context=131_072,  # Keye-VL 8B sheet 4: trained to 128K; the number in its configuration is not known
            unused=_PACKING_TABLE | _POOLING_HEAD,
        ),
        Preset(
            name="keye_vl_2_30b_a3b",
            title="Keye-VL-2.0-30B-A3B",
            build=keye_vl_2_30b_a3b,
            context=262_144,  # Keye-VL-2.0 sheet 2.2
            unused=_PACKING_TABLE,
        ),
        Preset(name="keye_vl_8b_tiny", title="twin of keye_vl_8b", build=keye_vl_8b_tiny, context=1024),
        Preset(name="keye_vl_1_5_8b_tiny", title="twin of keye_vl_1_5_8b", build=keye_vl_1_5_8b_tiny, context=1024),
        Preset(
            name="keye_vl_2_30b_a3b_tiny", title="twin of keye_vl_2_30b_a3b", build=keye_vl_2_30b_a3b_tiny, context=1024
        ),
    )
}
"""Every preset by name."""


def preset(name: str) -> Preset:
    """Look a preset up.

    Raises:
        ValueError: If there is none of this name; the message lists all and the closest.

    Example:
        >>> preset("keye_vl_2_30b_a3b").context
        262144
    """
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}{closest(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]
