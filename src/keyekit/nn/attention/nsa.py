"""Native Sparse Attention: summaries of all blocks, the tokens of the best, and the last few tokens, mixed by gates."""

from __future__ import annotations

from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.attention.base import Attention, AttentionOutput, GroupedQueryProjection, LayerContext
from keyekit.nn.attention.blocks import all_blocks, attend_to_rows, block_rows, rows_share
from keyekit.nn.attention.compression import BlockCompressor, Summaries, completed_blocks
from keyekit.nn.attention.segmented import segmented_attention
from keyekit.nn.attention.windowed import windowed_attention
from keyekit.nn.norm import RMSNorm
from keyekit.nn.rope.rotary import apply_rotary
from keyekit.nn.spec import LayerSpec

__all__ = ["NSA", "KeyValueProjection"]


class KeyValueProjection(nn.Module):
    """Weights of the keys and values of one more branch, as :class:`GroupedQueryProjection` has them.

    Args:
        spec: Sizes of the layer.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.head_dim = spec.head_dim
        self.k_proj = nn.Linear(spec.dim, spec.num_groups * spec.head_dim, bias=False)
        self.v_proj = nn.Linear(spec.dim, spec.num_groups * spec.head_dim, bias=False)
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps)


class NSA(Attention):
    """Every token attends three ways, and gates from its hidden state mix the results head by head (NSA, arXiv:2502.11089).

    *Compressed*: to learnt summaries of all complete blocks of ``compress_block`` tokens, one every ``compress_stride``.
    *Selected*: to the tokens of the ``topk_blocks`` most important blocks of ``select_block`` tokens; the attention to the
    summaries, summed over the heads of a group, says how important a block is, and the first and the last few are always read.
    *Sliding*: to the last ``window`` tokens.

    Where the paper is silent: summaries are made of keys before rotation, normalised like any key, and rotated to the position
    of their block's last token. No gradient passes through the selection; the summaries learn from their own branch. The
    selection that a layer reports and replays is ``[T, G, N]`` blocks, ascending, -1 in the unused tail.

    Args:
        spec: Sizes of the layer, filled in by the decoder.
        compress_block: Tokens of a summary, l.
        compress_stride: Tokens from one summary to the next, d; divides both kinds of blocks.
        select_block: Tokens of a selected block, l'; at least ``compress_block``.
        topk_blocks: Blocks that a query reads, n, the fixed ones included.
        window: Tokens of the sliding branch, its own included, w.
        initial_blocks: First blocks that every query reads.
        local_blocks: Last blocks that every query reads, its own included.
        compressor_dim: Inner width of the two perceptrons that summarise keys and values.
        separate_key_values: Whether each branch has keys and values of its own, so that the local ones are no shortcut for the
            others to learn (section 3.3.3). Without, all share those of the selected branch.
        implementation: Of the attention to selected tokens: ``auto`` (Triton on GPUs), ``triton``, or ``torch``.
    """

    takes_parts = True

    def __init__(
        self,
        spec: LayerSpec,
        compress_block: int = 32,
        compress_stride: int = 16,
        select_block: int = 64,
        topk_blocks: int = 16,
        window: int = 512,
        initial_blocks: int = 1,
        local_blocks: int = 2,
        compressor_dim: int = 256,
        separate_key_values: bool = True,
        implementation: str = "auto",
    ) -> None:
        super().__init__(spec)
        _check_blocks(compress_block, compress_stride, select_block)
        _check_choice(topk_blocks, initial_blocks, local_blocks)
        if window < 1 or compressor_dim < 1:
            raise ValueError(f"window={window}, compressor_dim={compressor_dim}: both are at least 1")
        self.compress_block, self.compress_stride, self.select_block = compress_block, compress_stride, select_block
        self.topk_blocks, self.initial_blocks, self.local_blocks = topk_blocks, initial_blocks, local_blocks
        self.window = window
        self.implementation = implementation
        self.projection = GroupedQueryProjection(spec)  # queries of all branches; keys and values of the selected one
        self.compression = KeyValueProjection(spec) if separate_key_values else None
        self.sliding = KeyValueProjection(spec) if separate_key_values else None
        self.key_compressor = BlockCompressor(compress_block, spec.head_dim, compressor_dim)
        self.value_compressor = BlockCompressor(compress_block, spec.head_dim, compressor_dim)
        self.compressed_norm = RMSNorm(spec.head_dim, spec.norm_eps)
        self.gate_proj = nn.Linear(spec.dim, 3 * spec.num_heads, bias=False)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, spec.dim, bias=False)

    def forward(self, hidden: Tensor, context: LayerContext) -> AttentionOutput:
        """Attend three ways and mix; see :class:`Attention`."""
        rotary, shared, exchange = context.rotary, self.projection, context.exchange
        query = rotary(shared.q_norm(shared.q_proj(hidden).unflatten(-1, (-1, shared.head_dim))))
        raw_key, value = _key_value(shared, hidden)
        query, key = query.to(value.dtype), rotary(raw_key).to(value.dtype)
        query, key, value, raw_key = exchange.to_heads(query, key, value, raw_key)
        key, value = _stored("key", key, context), _stored("value", value, context)
        near_key, near_value, raw_value = key, value, value
        if self.sliding is not None:
            near_key, near_value = _key_value(self.sliding, hidden)
            near_key, near_value = exchange.to_heads(rotary(near_key).to(value.dtype), near_value)
            near_key, near_value = (
                _stored(name, new, context) for name, new in (("sliding_key", near_key), ("sliding_value", near_value))
            )
        if self.compression is not None:
            raw_key, raw_value = exchange.to_heads(*_key_value(self.compression, hidden))
            raw_value = _stored("raw_value", raw_value, context)
        summaries = self._summaries(_stored("raw_key", raw_key, context), raw_value, context)
        selection = None if context.selection is None else exchange.to_heads(context.selection)[0]
        if selection is None:
            selection = self._choose(query, summaries, context.segments)
        rows = block_rows(selection, context.segments, self.select_block)
        compressed, selected, sliding = exchange.to_tokens(
            summaries.attend(query),
            self._attend_to_selected(query, key, value, rows, context),
            windowed_attention(query, near_key, near_value, context.segments, window=self.window),
        )
        gates = self.gate_proj(hidden).sigmoid().unflatten(-1, (3, -1, 1))
        mixed = gates[:, 0] * compressed + gates[:, 1] * selected + gates[:, 2] * sliding
        return AttentionOutput(
            hidden=self.o_proj(mixed.flatten(1)),
            selection=exchange.to_tokens(selection)[0],
            meters={"selected_share": rows_share(rows, context)},
        )

    def _summaries(self, raw_key: Tensor, raw_value: Tensor, context: LayerContext) -> Summaries:
        """Summarise the blocks that the new tokens complete, and bring those of earlier ones from the cache.

        Args:
            raw_key: ``[S, groups, K]`` keys before rotation of all tokens, of the groups here.
            raw_value: ``[S, groups, K]`` their values.
            context: As in :meth:`forward`.
        """
        segments, cache = context.segments, context.cache
        blocks = completed_blocks(
            segments.lengths, segments.key_lengths, self.compress_block, self.compress_stride, str(raw_key.device)
        )
        key = self.compressed_norm(self.key_compressor(raw_key[blocks.members]))
        cosine, sine = (context.exchange.gather(table) for table in context.rotary.tables(key.shape[-1]))
        key = apply_rotary(key, cosine[blocks.rows], sine[blocks.rows])
        value = self.value_compressor(raw_value[blocks.members])
        if cache is not None:  # a cache holds a row per token: summaries stand where their blocks end
            total = segments.total
            key, value = (
                cache.extend(name, new.new_zeros(total, *new.shape[1:]).index_copy(0, blocks.rows, new), segments)
                for name, new in (("compressed_key", key), ("compressed_value", value))
            )
            key, value = key[blocks.ends], value[blocks.ends]
        return Summaries(key, value, blocks.counts, segments, self.compress_block, self.compress_stride)

    def _covers(self, segments: Segments) -> bool:
        """Whether so many blocks may be chosen that every token sees all before it."""
        return segments.key_maximum <= self.topk_blocks * self.select_block

    def _choose(self, query: Tensor, summaries: Summaries, segments: Segments) -> Tensor:
        if self._covers(segments):
            return all_blocks(segments, self.select_block, summaries.key.shape[1])
        return summaries.choose(query, self.select_block, self.topk_blocks, self.initial_blocks, self.local_blocks)

    def _attend_to_selected(
        self, query: Tensor, key: Tensor, value: Tensor, rows: Tensor, context: LayerContext
    ) -> Tensor:
        if context.selection is None and self._covers(context.segments):
            return segmented_attention(query, key, value, context.segments, causal=True)
        return attend_to_rows(query, key, value, rows, context.segments, self.implementation)


def _key_value(projection: GroupedQueryProjection | KeyValueProjection, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Keys before rotation and values ``[T, G, K]`` of ``hidden [T, D]``."""
    key = projection.k_norm(projection.k_proj(hidden).unflatten(-1, (-1, projection.head_dim)))
    return key, projection.v_proj(hidden).unflatten(-1, (-1, projection.head_dim))


def _stored(name: str, new: Tensor, context: LayerContext) -> Tensor:
    """``new`` behind what the cache holds under ``name``, or by itself in training."""
    return new if context.cache is None else context.cache.extend(name, new, context.segments)


def _check_blocks(compress_block: int, compress_stride: int, select_block: int) -> None:
    stride = compress_stride
    if stride < 1 or compress_block % stride or select_block % stride or not 0 < compress_block <= select_block:
        raise ValueError(
            f"compress_block={compress_block}, compress_stride={stride}, select_block={select_block}: the stride has to divide "
            "both blocks, and a selected block is at least as long as a compressed one"
        )


def _check_choice(topk_blocks: int, initial_blocks: int, local_blocks: int) -> None:
    if initial_blocks < 0 or local_blocks < 1 or topk_blocks < initial_blocks + local_blocks:
        raise ValueError(
            f"topk_blocks={topk_blocks}, initial_blocks={initial_blocks}, local_blocks={local_blocks}: at least the own "
            "block is local, and topk_blocks counts the initial and the local ones too"
        )
