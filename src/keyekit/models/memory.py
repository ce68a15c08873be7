"""What training and decoding hold in memory, by arithmetic: weights and their companions, activations, caches.

Activations are what autograd keeps between forward and backward; the formulas below follow the operations of the parts one by
one. What a kernel needs while it runs, and what an allocator wastes, comes on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from keyekit.models.patterns import BlockPattern, NativePattern, WindowPattern
from keyekit.models.sizes import LayerSizes, NetworkSizes, VisionSizes
from keyekit.nn.attention.windowed import chunk_length

__all__ = [
    "PRECISIONS",
    "Activations",
    "CacheBytes",
    "Precision",
    "StateMemory",
    "activation_memory",
    "cache_bytes",
    "state_memory",
]

_CHUNK_BYTES = 2 * 256 * 2**20
"""A chunk of the output layer: logits in float32 and two copies in 16 bits (objectives.linear_cross_entropy)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes of one number.

    Args:
        weight: Of a parameter as it is held and updated.
        gradient: Of its gradient.
        optimizer: Of AdamW's two moments together.
        compute: Of what a matrix product reads and writes.
        residual: Of the hidden states between layers.
    """

    weight: int
    gradient: int
    optimizer: int
    compute: int
    residual: int


PRECISIONS: dict[str, Precision] = {
    # float32 master weights and moments; products read bfloat16 copies.
    "bf16-mixed": Precision(weight=4, gradient=4, optimizer=8, compute=2, residual=4),
    # FSDP2's own mixed precision: float32 shards are gathered as bfloat16, and all between layers is bfloat16 too.
    "bf16-gathered": Precision(weight=4, gradient=4, optimizer=8, compute=2, residual=2),
    # Everything in bfloat16, moments too: small, and updates below the last bit are lost.
    "bf16-true": Precision(weight=2, gradient=2, optimizer=4, compute=2, residual=2),
    "32-true": Precision(weight=4, gradient=4, optimizer=8, compute=4, residual=4),
}
"""Lightning's names of precisions, and ``bf16-gathered`` for float32 whose plan has ``parameter_dtype: bfloat16``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateMemory:
    """Bytes on one rank that do not depend on the batch.

    Args:
        weights: Parameters.
        gradients: Gradients of the trainable ones.
        optimizer: AdamW's moments of the trainable ones.
        gathered: With full sharding two layers' weights and one layer's gradients, whole; without it the copies that autocast
            makes.
        frozen_reference: Parameters of a frozen copy that lies beside the network in the same way.
    """

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    frozen_reference: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.gathered + self.frozen_reference


def state_memory(
    parameters: int,
    trainable: int,
    largest_unit: int,
    *,
    devices: int,
    sharding: Literal["full", "none"],
    precision: Precision,
) -> StateMemory:
    """Weights, gradients and optimizer on one rank.

    Args:
        parameters: Parameters of the network.
        trainable: Those that are trained.
        largest_unit: Parameters of the largest unit that is gathered at a time: a layer, or the embedding.
        devices: Ranks among which full sharding divides.
        sharding: ``full`` divides weights, gradients and optimizer (FSDP2, ZeRO-3); ``none`` repeats them on every rank.
        precision: Bytes of the numbers.

    Example:
        >>> held = state_memory(10, 10, 4, devices=1, sharding="none", precision=PRECISIONS["32-true"])
        >>> held.weights, held.gradients, held.optimizer, held.gathered
        (40.0, 40.0, 80.0, 0)
    """
    if sharding == "full":
        shares, gathered = devices, 3 * largest_unit * precision.compute
    else:
        shares, gathered = 1, parameters * precision.compute if precision.compute < precision.weight else 0
    return StateMemory(
        weights=parameters * precision.weight / shares,
        gradients=trainable * precision.gradient / shares,
        optimizer=trainable * precision.optimizer / shares,
        gathered=gathered,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes on one rank that autograd keeps, for one pack.

    Args:
        decoder: Decoder layers.
        vision: Vision tower and projector.
        head: Output layer and loss: the gradient of its weight, one chunk of logits.
    """

    decoder: float
    vision: float
    head: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.decoder + self.vision + self.head


def activation_memory(
    sizes: NetworkSizes,
    tokens: int,
    patches: int,
    *,
    precision: Precision,
    checkpointing: bool = False,
    sparse_reference: bool = False,
) -> Activations:
    """Activations of one pack.

    With checkpointing every layer keeps its input alone, and one layer at a time is whole again in the backward pass.

    Args:
        sizes: The network.
        tokens: Tokens of the pack, vision tokens included.
        patches: Vision patches of the pack.
        precision: Bytes of the numbers.
        checkpointing: Whether layers are recomputed in the backward pass.
        sparse_reference: Whether sparse attention runs through its PyTorch definition, which copies the selected keys and
            values of every query.
    """
    layers = [(_layer(layer, sizes.dim, precision, sparse_reference), count) for layer, count in sizes.layers]
    block = _block(sizes.vision, precision)
    if checkpointing:
        per_token = sizes.num_layers * precision.residual * sizes.dim + max((held for held, _ in layers), default=0)
        per_patch = sizes.vision.num_layers * precision.residual * sizes.vision.dim + block
    else:
        per_token = sum(held * count for held, count in layers)
        per_patch = sizes.vision.num_layers * block
    # The projector keeps its merged input, the normalised input and two hidden states of the merged width.
    per_patch += sizes.vision.dim * (precision.residual + 3 * precision.compute)
    per_patch += 4 * sizes.vision.patch_weights // sizes.vision.dim  # the pixels
    return Activations(
        decoder=float(tokens * per_token),
        vision=float(patches * per_patch),
        head=float(sizes.vocab_size * sizes.dim * 4 + _CHUNK_BYTES + 2 * tokens * precision.residual * sizes.dim),
    )


def _layer(layer: LayerSizes, dim: int, precision: Precision, reference: bool) -> int:
    """Bytes that a decoder layer keeps per token."""
    wide, narrow = layer.num_heads * layer.head_dim, layer.num_groups * layer.head_dim
    compute = precision.compute
    # Inputs in float32, and of each row of D or K numbers the inverse of its root mean square.
    norms = 4 * (2 * dim + wide + narrow) + 4 * (2 + layer.num_heads + layer.num_groups)
    inputs = 2 * compute * dim  # what the projections of attention and feed-forward read
    attention = compute * 2 * (wide + narrow) + 4 * layer.num_heads  # query, key, value, output, log-sum-exp
    dense = 4 * compute * layer.hidden_dim  # gate, its activation, up, their product
    experts = 4 * compute * layer.expert_dim + 2 * compute * layer.active_experts * dim  # likewise; inputs and outputs
    router = (4 * dim + 4 * layer.num_experts + 40 * layer.active_experts) if layer.num_experts else 0
    sparse = _sparse(layer, compute, reference) + int(_pattern(layer, compute, reference))
    return norms + inputs + attention + dense + experts + router + sparse


def _sparse(layer: LayerSizes, compute: int, reference: bool) -> int:
    """Bytes per token that sparse attention keeps beyond dense attention."""
    if layer.topk is None:
        return 0
    index = layer.indexer_heads * layer.indexer_dim
    # Inputs of the indexer's norms in float32, rotated queries and key, gates, the selection as int32.
    held = (4 + compute) * (index + layer.indexer_dim) + compute * layer.indexer_heads + 4 * layer.topk
    if not reference:
        return held
    keys_and_values = 2 * 4 * layer.topk * layer.num_groups * layer.head_dim
    weights = 3 * 4 * layer.topk * layer.num_heads  # logits, their exponentials, and these without the unused
    scores = 4 * layer.topk * (layer.indexer_dim + layer.indexer_heads + 2)
    return held + keys_and_values + weights + scores + 3 * 8 * layer.topk  # three times the selection as int64


def _pattern(layer: LayerSizes, compute: int, reference: bool) -> float:
    """The same for windows, blocks and their mixture, in sequences that are long beside them; masks of pairs are left out."""
    pattern = layer.pattern
    if isinstance(pattern, WindowPattern):
        return _window(layer, pattern.window, pattern.sinks, pattern.sink_width / layer.head_dim, compute)
    if isinstance(pattern, BlockPattern):
        return _blocks(layer, pattern.choosers, pattern.topk_blocks * pattern.block_size, compute, reference)
    if isinstance(pattern, NativePattern):
        selected = _blocks(layer, layer.num_groups, pattern.topk_blocks * pattern.select_block, compute, reference)
        return selected + _window(layer, pattern.window, 0, 0.0, compute) + _native(layer, pattern, compute)
    return 0


def _window(layer: LayerSizes, window: int, sinks: int, wider: float, compute: int) -> float:
    """Chunks of queries, their results, and every key and value in two chunks; ``wider`` by the place of sink logits."""
    wide, narrow = layer.num_heads * layer.head_dim, layer.num_groups * layer.head_dim
    keys = (1 + wider) * (2 + sinks / chunk_length(window, sinks)) - 1
    queries = wider if wider else 1
    return compute * (wide * (1 + wider + queries) + 2 * narrow * keys) + 3 * 8  # and three times rows as int64


def _blocks(layer: LayerSizes, choosers: int, selected: int, compute: int, reference: bool) -> float:
    """The selection as int32 and the result of each chooser; the definition copies the selected keys and values."""
    wide, narrow = layer.num_heads * layer.head_dim, layer.num_groups * layer.head_dim
    if not reference:
        return compute * wide + 4 * choosers * selected
    keys_and_values = 2 * 4 * selected * choosers * layer.head_dim - 2 * compute * narrow
    weights = 3 * 4 * selected * layer.num_heads
    return keys_and_values + weights + (2 * 8 + 1) * choosers * selected  # twice the selection as int64, once as bool


def _native(layer: LayerSizes, pattern: NativePattern, compute: int) -> float:
    """Summaries, keys and values of further branches, three results and their gates."""
    wide, narrow = layer.num_heads * layer.head_dim, layer.num_groups * layer.head_dim
    branches = 2 if layer.cache_width > 5 * narrow else 0  # with keys of their own
    keys = branches * 4 * (narrow + layer.num_groups) + 2 * compute * narrow
    row = pattern.compress_block * layer.head_dim + 2 * pattern.compressor_dim + 2 * layer.head_dim
    summaries = 2 * compute * layer.num_groups * row / pattern.compress_stride
    results = compute * (4 * wide + 3 * layer.num_heads)  # three to be scaled, and that of the summaries by itself
    return keys + summaries + results + 2 * compute * layer.num_heads


def _block(vision: VisionSizes, precision: Precision) -> int:
    """Bytes that a block of the vision tower keeps per patch."""
    norms = 2 * (precision.residual + precision.compute) * vision.dim
    attention = precision.compute * 4 * vision.dim + 4 * vision.num_heads  # query, key, value, output, log-sum-exp
    return norms + attention + 2 * precision.compute * vision.hidden_dim  # before and after the GELU


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheBytes:
    """What decoding keeps of one token, over all layers.

    Args:
        key_value: Keys and values in 16 bits, of all branches and summaries. Nothing that a window has passed is dropped.
        index: Indexer keys as the released server stores them: eight bits a number and a float32 scale (Keye-VL-2.0 sheet 4.4).
        index_wide: The same in 16 bits, as :class:`~keyekit.models.cache.SequenceCache` holds them.
    """

    key_value: int
    index: int
    index_wide: int


def cache_bytes(sizes: NetworkSizes) -> CacheBytes:
    """Bytes of the caches per token."""
    sparse = [(layer, count) for layer, count in sizes.layers if layer.indexer_dim]
    return CacheBytes(
        key_value=sum(2 * layer.cache_width * count for layer, count in sizes.layers),
        index=sum((layer.indexer_dim + 4) * count for layer, count in sparse),
        index_wide=sum(2 * layer.indexer_dim * count for layer, count in sparse),
    )
