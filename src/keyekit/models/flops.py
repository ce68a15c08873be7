"""Floating-point operations of a network, by arithmetic alone: one account for planning, packing and utilisation.

A multiplication and its addition are two operations. Matrix products are counted and nothing else: norms, activations and
rotations move memory rather than compute. Causal attention counts the pairs that exist, half of the square that
:class:`torch.utils.flop_counter.FlopCounterMode` reports; ``rectangular`` counts as that tool does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

from keyekit.models.patterns import PatternCost
from keyekit.models.sizes import LayerSizes, NetworkSizes, VisionSizes

__all__ = ["Flops", "causal_pairs", "forward_flops", "selected_pairs", "training_flops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Operations by what does them.

    Args:
        linear: Projections of attention and dense feed-forwards of the decoder, summaries of blocks included.
        attention: Dense attention of the decoder.
        head: Output layer.
        router: Routers.
        experts: Experts that tokens visit.
        indexer: Projections of the indexers.
        selection: Scores by which sparse attention chooses: an indexer's, of every visible pair; of blocks, of every past one.
        sparse_attention: Attention over selected keys, windows, blocks and summaries.
        indexer_loss: What teaches the indexers, in training.
        vision_linear: Matrices of the vision tower.
        vision_attention: Attention of the vision tower.
        projector: Projector.
    """

    linear: float = 0
    attention: float = 0
    head: float = 0
    router: float = 0
    experts: float = 0
    indexer: float = 0
    selection: float = 0
    sparse_attention: float = 0
    indexer_loss: float = 0
    vision_linear: float = 0
    vision_attention: float = 0
    projector: float = 0

    def __add__(self, other: Flops) -> Flops:
        return Flops(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __mul__(self, factor: float) -> Flops:
        return Flops(**{f.name: getattr(self, f.name) * factor for f in fields(self)})

    @property
    def dense(self) -> float:
        """What a dense decoder has too: projections, dense attention and feed-forwards, output layer."""
        return self.linear + self.attention + self.head

    @property
    def mixture(self) -> float:
        """Routers and experts."""
        return self.router + self.experts

    @property
    def sparse(self) -> float:
        """Indexers and attention over what they select."""
        return self.indexer + self.selection + self.sparse_attention + self.indexer_loss

    @property
    def vision(self) -> float:
        """Vision tower and projector."""
        return self.vision_linear + self.vision_attention + self.projector

    @property
    def total(self) -> float:
        """Everything."""
        return sum(astuple(self))


def causal_pairs(queries: int, keys: int) -> int:
    """Pairs of a query and a key that it sees; the queries are the last of the ``keys`` positions.

    Example:
        >>> causal_pairs(3, 3), causal_pairs(1, 10)
        (6, 10)
    """
    return queries * keys - queries * (queries - 1) // 2


def selected_pairs(queries: int, keys: int, topk: int) -> int:
    """The same when no query reads more than ``topk`` keys.

    Example:
        >>> selected_pairs(4, 4, topk=2), selected_pairs(4, 4, topk=9)
        (7, 10)
    """
    growing = min(
        max(topk - (keys - queries), 0), queries
    )  # queries that see fewer keys than they may read, or as many
    return causal_pairs(growing, keys - queries + growing) + (queries - growing) * topk


def forward_flops(
    sizes: NetworkSizes,
    lengths: Sequence[int],
    grids: Sequence[Sequence[int]] = (),
    *,
    key_lengths: Sequence[int] | None = None,
    targets: int | None = None,
    rectangular: bool = False,
) -> Flops:
    """One forward pass over packed samples; also the cost by which samples are balanced.

    Args:
        sizes: The network.
        lengths: Tokens of each sample, vision tokens included.
        grids: Patches of each medium: ``(rows, columns)`` of an image or frame, or ``(frames, rows, columns)`` of a video.
        key_lengths: Tokens that the queries of each sample see, where earlier ones are cached; ``lengths`` by default.
        targets: Positions whose logits are computed; all by default.
        rectangular: Count attention as :class:`~torch.utils.flop_counter.FlopCounterMode` sees it in PyTorch's operations: full
            squares for causal attention, and for sparse attention as many keys per query as the longest sample selects.

    Example:
        >>> import torch
        >>> from keyekit.models.presets import keye_vl_2_30b_a3b
        >>> with torch.device("meta"):
        ...     sizes = NetworkSizes.of(keye_vl_2_30b_a3b())
        >>> one = forward_flops(sizes, [1], key_lengths=[131_072])
        >>> f"{(one.selection + one.sparse_attention) / 48 / 1e9:.3f} GFLOP per layer"  # Keye-VL-2.0 sheet 4.4
        '0.306 GFLOP per layer'
    """
    keys = lengths if key_lengths is None else key_lengths
    tokens = sum(lengths)
    total = Flops(head=2 * (tokens if targets is None else targets) * sizes.dim * sizes.vocab_size)
    total += _vision(sizes, grids)
    for layer, count in sizes.layers:
        total += _layer(layer, lengths, keys, rectangular) * count
    return total


def training_flops(
    sizes: NetworkSizes,
    lengths: Sequence[int],
    grids: Sequence[Sequence[int]] = (),
    *,
    key_lengths: Sequence[int] | None = None,
    targets: int | None = None,
    recompute: bool = False,
) -> Flops:
    """Forward and backward over packed samples when everything is trained.

    A matrix product costs three times its forward: itself, the gradient of its input, that of its weight. Two things cost
    less, because no gradient leaves them: patch embeddings and the indexers' projections (twice), the selection (once).

    Args:
        sizes: The network.
        lengths: Tokens of each sample.
        grids: As in :func:`forward_flops`.
        key_lengths: Tokens that the last token of each sample sees, where ranks share a pack; ``lengths`` by default.
        targets: Positions with a label; all by default.
        recompute: Whether layers run forward again in the backward pass (activation checkpointing). Leave it out for
            utilisation, which credits useful work alone.
    """
    keys = lengths if key_lengths is None else key_lengths
    forward = forward_flops(sizes, lengths, grids, key_lengths=keys, targets=targets)
    passes = 4 if recompute else 3
    patches = 2 * _num_patches(grids) * sizes.vision.patch_weights
    return Flops(
        linear=forward.linear * passes,
        attention=forward.attention * passes,
        head=forward.head * 3,
        router=forward.router * passes,
        experts=forward.experts * passes,
        indexer=forward.indexer * (passes - 1),
        selection=forward.selection * (passes - 2),
        sparse_attention=forward.sparse_attention * passes,
        indexer_loss=_indexer_loss(sizes, lengths, keys, passes),
        vision_linear=forward.vision_linear * passes - patches * (passes - 2),
        vision_attention=forward.vision_attention * passes,
        projector=forward.projector * 3,
    )


def _layer(layer: LayerSizes, lengths: Sequence[int], keys: Sequence[int], rectangular: bool) -> Flops:
    tokens, width = sum(lengths), layer.num_heads * layer.head_dim
    if rectangular:
        visible = sum(queries * seen for queries, seen in zip(lengths, keys, strict=True))
    else:
        visible = sum(causal_pairs(queries, seen) for queries, seen in zip(lengths, keys, strict=True))
    none = PatternCost(attended=0)
    sparse = none if layer.pattern is None else layer.pattern.cost(lengths, keys, rectangular)
    dense = layer.topk is None and layer.pattern is None
    return Flops(
        linear=2 * tokens * (layer.attention_weights + layer.feed_forward_weights)
        + 2 * sparse.summarised * layer.summary_weights,
        attention=4 * width * visible if dense else 0,
        router=2 * tokens * layer.router_weights,
        experts=2 * tokens * layer.expert_weights,
        indexer=2 * tokens * layer.indexer_weights,
        # A product per head and the gated sum over heads (Keye-VL-2.0 sheet 4.1 item 7).
        selection=2 * layer.indexer_heads * (layer.indexer_dim + 1) * visible + 2 * layer.head_dim * sparse.scored,
        sparse_attention=4 * width * (_selected(layer.topk, lengths, keys, rectangular) + sparse.attended),
    )


def _selected(topk: int | None, lengths: Sequence[int], keys: Sequence[int], rectangular: bool) -> int:
    if topk is None:
        return 0
    if rectangular:
        return sum(lengths) * min(topk, max(keys, default=0))
    return sum(selected_pairs(queries, seen, topk) for queries, seen in zip(lengths, keys, strict=True))


def _indexer_loss(sizes: NetworkSizes, lengths: Sequence[int], keys: Sequence[int], passes: int) -> float:
    """The attention that is to be imitated, computed once more without gradient, and scores of the selected keys with one."""
    total = 0
    for layer, count in sizes.layers:
        target = 2 * layer.num_heads * layer.head_dim * (passes - 2)
        scores = 2 * layer.indexer_heads * (layer.indexer_dim + 1) * passes
        total += count * (target + scores) * _selected(layer.topk, lengths, keys, rectangular=False)
    return total


def _vision(sizes: NetworkSizes, grids: Sequence[Sequence[int]]) -> Flops:
    patches = _num_patches(grids)
    vision = sizes.vision
    return Flops(
        vision_linear=2 * patches * (vision.patch_weights + vision.block_weights),
        vision_attention=4 * vision.dim * vision.num_layers * _patch_pairs(vision, grids),
        projector=2 * patches // sizes.merge**2 * sizes.projector_weights,
    )


def _patch_pairs(vision: VisionSizes, grids: Sequence[Sequence[int]]) -> int:
    total = 0
    for *frames, rows, columns in grids:
        number = frames[0] if frames else 1
        total += (number * rows * columns) ** 2 // (1 if vision.whole_videos else number)
    return total


def _num_patches(grids: Sequence[Sequence[int]]) -> int:
    total = 0
    for *frames, rows, columns in grids:
        total += (frames[0] if frames else 1) * rows * columns
    return total
