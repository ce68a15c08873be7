"""The sizes of a network that decide what it costs, read from its modules; a network on the meta device will do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from torch import nn

from keyekit.models.decoder import DecoderLayer
from keyekit.models.patterns import Pattern, pattern_of
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.attention.base import Attention
from keyekit.nn.attention.compression import BlockCompressor
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.attention.nsa import NSA
from keyekit.nn.encoder import EncoderBlock
from keyekit.nn.moe.base import FeedForward, Router
from keyekit.nn.vision.base import VisionEncoder
from keyekit.nn.vision.keye_vit import KeyeViT

__all__ = ["LayerSizes", "NetworkSizes", "VisionSizes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSizes:
    """One decoder layer.

    Args:
        attention_weights: Entries of the matrices that every token passes in attention, the indexer's left out.
        summary_weights: Entries of the matrices that every block passes which an attention summarises, for all its groups.
        feed_forward_weights: Entries of the matrices that every token passes in the feed-forward: all of a dense one, shared
            experts of a mixture.
        expert_weights: Entries of the matrices of the experts that a token visits.
        router_weights: Entries of the router.
        indexer_weights: Entries of the indexer's projections.
        num_heads: Query heads H.
        num_groups: Key/value groups G.
        head_dim: Width of a head K.
        topk: Keys that the indexer of a DSA layer selects for a query; ``None`` for any other scheme.
        pattern: Which keys any other sparse scheme reads; ``None`` for all.
        cache_width: Numbers that decoding keeps of a token, the indexer's left out.
        indexer_heads: Heads of the indexer, 0 without one.
        indexer_dim: Width of an indexer head, 0 without one.
        expert_dim: Inner widths of the experts that a token visits, added up.
        hidden_dim: Inner width of the feed-forward that every token passes.
        active_experts: Experts per token.
        num_experts: Experts.
    """

    attention_weights: int
    summary_weights: int
    feed_forward_weights: int
    expert_weights: int
    router_weights: int
    indexer_weights: int
    num_heads: int
    num_groups: int
    head_dim: int
    topk: int | None
    pattern: Pattern | None
    cache_width: int
    indexer_heads: int
    indexer_dim: int
    expert_dim: int
    hidden_dim: int
    active_experts: int
    num_experts: int

    @classmethod
    def of(cls, layer: DecoderLayer) -> LayerSizes:
        """Read one layer."""
        spec = layer.self_attn.spec
        sparse = layer.self_attn if isinstance(layer.self_attn, DSA) else None
        indexer = 0 if sparse is None else _matrices(sparse.sa_indexer)
        compressors = [module for module in layer.self_attn.modules() if isinstance(module, BlockCompressor)]
        summaries = sum(_matrices(module.enter) + _matrices(module.leave) for module in compressors)
        positions = sum(module.position.numel() for module in compressors)
        experts = _expert_sizes(layer.mlp)
        dense = _matrices(layer.mlp) - experts["router_weights"]
        return cls(
            attention_weights=_matrices(layer.self_attn) - indexer - summaries - positions,
            summary_weights=summaries * spec.num_groups,
            feed_forward_weights=dense,
            indexer_weights=indexer,
            num_heads=spec.num_heads,
            num_groups=spec.num_groups,
            head_dim=spec.head_dim,
            topk=None if sparse is None else sparse.topk,
            pattern=pattern_of(layer.self_attn),
            cache_width=_cached_rows(layer.self_attn) * spec.num_groups * spec.head_dim,
            indexer_heads=0 if sparse is None else sparse.sa_indexer.num_heads,
            indexer_dim=0 if sparse is None else sparse.sa_indexer.head_dim,
            hidden_dim=dense // (3 * spec.dim),
            **experts,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSizes:
    """The vision tower.

    Args:
        patch_weights: Entries of the patch embedding.
        block_weights: Entries of the blocks' matrices.
        dim: Width of the features.
        num_layers: Blocks.
        num_heads: Heads.
        hidden_dim: Inner width of the perceptrons.
        whole_videos: Whether the frames of a video attend to each other.
    """

    patch_weights: int
    block_weights: int
    dim: int
    num_layers: int
    num_heads: int
    hidden_dim: int
    whole_videos: bool

    @classmethod
    def of(cls, vision: VisionEncoder) -> VisionSizes:
        """Read a tower; of one that is not :class:`KeyeViT` only the matrices are known."""
        if not isinstance(vision, KeyeViT):
            return cls(
                patch_weights=0,
                block_weights=_matrices(vision),
                dim=vision.dim,
                num_layers=0,
                num_heads=0,
                hidden_dim=0,
                whole_videos=False,
            )
        patch = _matrices(vision.embeddings)
        blocks = [module for module in vision.modules() if isinstance(module, EncoderBlock)]
        return cls(
            patch_weights=patch,
            block_weights=_matrices(vision) - patch,
            dim=vision.dim,
            num_layers=len(blocks),
            num_heads=vision.dim // vision.head_dim,
            hidden_dim=blocks[0].mlp.fc1.out_features if blocks else 0,
            whole_videos=vision.attend == "video",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSizes:
    """A vision-language model.

    Args:
        dim: Width D of the decoder.
        vocab_size: Rows V of the output layer.
        layers: Kinds of decoder layers with how many there are of each.
        vision: The vision tower.
        projector_weights: Entries of the projector's matrices.
        merge: Side of the square of patches that becomes one token.
        assumptions: What is not known of the network and how it is counted, one sentence each.
    """

    dim: int
    vocab_size: int
    layers: tuple[tuple[LayerSizes, int], ...]
    vision: VisionSizes
    projector_weights: int
    merge: int
    assumptions: tuple[str, ...] = ()

    @classmethod
    def of(cls, network: VisionLanguageModel) -> NetworkSizes:
        """Read a network."""
        layers = [layer for layer in network.decoder.layers if isinstance(layer, DecoderLayer)]
        return cls(
            dim=network.decoder.dim,
            vocab_size=network.decoder.vocab_size,
            layers=tuple(Counter(LayerSizes.of(layer) for layer in layers).items()),
            vision=VisionSizes.of(network.vision),
            projector_weights=_matrices(network.projector),
            merge=network.projector.merge,
            assumptions=_assumptions(network, [layer.self_attn for layer in layers]),
        )

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return sum(count for _, count in self.layers)


def _matrices(module: nn.Module) -> int:
    """Entries of what multiplies every row of an input: matrices and kernels, but no table and no stack of experts."""
    total = 0
    for inner in module.modules():
        if isinstance(inner, nn.Embedding):
            continue
        own = inner.parameters(recurse=False)
        total += sum(p.numel() for p in own if p.ndim == 2 or (isinstance(inner, nn.Conv2d) and p.ndim == 4))
    return total


def _cached_rows(attention: Attention) -> int:
    """Rows of keys' width that a cache holds of a token in each group."""
    if not isinstance(attention, NSA):
        return 2
    # Keys and values of three branches and of the summaries; what is shared is kept once, but keys also before rotation.
    return 8 if attention.compression is not None else 5


def _expert_sizes(feed_forward: FeedForward) -> dict[str, int]:
    router = next((module for module in feed_forward.modules() if isinstance(module, Router)), None)
    if router is None:
        names = ("expert_weights", "router_weights", "expert_dim", "active_experts", "num_experts")
        return dict.fromkeys(names, 0)
    active, number = router.spec.active_experts, router.spec.num_experts
    stacked = sum(parameter.numel() for parameter in feed_forward.parameters() if parameter.ndim == 3)
    per_token = stacked * active // number
    return {
        "expert_weights": per_token,
        "router_weights": _matrices(router),
        "expert_dim": per_token // (3 * router.spec.dim),
        "active_experts": active,
        "num_experts": number,
    }


def _assumptions(network: VisionLanguageModel, attentions: list[Attention]) -> tuple[str, ...]:
    unknown = {
        type(attention).__name__
        for attention in attentions
        if not isinstance(attention, Dense | DSA) and pattern_of(attention) is None
    }
    notes = [f"{name} is counted as dense causal attention" for name in sorted(unknown)]
    if not isinstance(network.vision, KeyeViT):
        notes.append(f"of {type(network.vision).__name__} the matrices are counted, its attention is not")
    return tuple(notes)
