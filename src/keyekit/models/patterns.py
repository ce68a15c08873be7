"""What the sparse schemes other than DSA compute and keep, by arithmetic on their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from keyekit.nn.attention.base import Attention
from keyekit.nn.attention.block_topk import BlockTopK
from keyekit.nn.attention.nsa import NSA
from keyekit.nn.attention.sliding_window import SlidingWindow
from keyekit.nn.attention.windowed import computed_pairs, windowed_pairs

__all__ = ["BlockPattern", "NativePattern", "Pattern", "PatternCost", "WindowPattern", "block_pairs", "pattern_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatternCost:
    """Numbers of multiplications with their additions, before the width of a head.

    Args:
        attended: Pairs of a query and a key (or summary) that a head attends to; they cost two products of head width.
        scored: Products of head width by which keys are chosen, over all heads or groups that choose.
        summarised: Blocks that are summarised.
    """

    attended: float
    scored: int = 0
    summarised: int = 0


class Pattern(Protocol):
    """Which keys a scheme reads."""

    def cost(self, lengths: Sequence[int], keys: Sequence[int], rectangular: bool) -> PatternCost:
        """Of samples with these queries and keys; ``rectangular`` counts what PyTorch's operations multiply."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPattern:
    """Sizes of :class:`~keyekit.nn.attention.sliding_window.SlidingWindow`.

    Args:
        window: Last tokens that a query sees.
        sinks: First tokens that every query sees.
        sink_width: Places by which sink logits widen a head of ``head_dim``; 0 without them.
        head_dim: Width of a head.
    """

    window: int
    sinks: int
    sink_width: int
    head_dim: int

    def cost(self, lengths: Sequence[int], keys: Sequence[int], rectangular: bool) -> PatternCost:
        """See :class:`Pattern`."""
        if not rectangular:
            pairs = zip(lengths, keys, strict=True)
            return PatternCost(attended=sum(windowed_pairs(q, k, self.window, self.sinks) for q, k in pairs))
        if max(keys, default=0) <= self.window and not self.sink_width:
            return PatternCost(attended=_squares(lengths, keys))
        extra = 1 if self.sink_width else 0
        computed = computed_pairs(tuple(lengths), tuple(keys), self.window, self.sinks, extra)
        return PatternCost(attended=computed * (self.head_dim + self.sink_width) / self.head_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPattern:
    """Sizes of :class:`~keyekit.nn.attention.block_topk.BlockTopK`.

    Args:
        block_size: Tokens of a block.
        topk_blocks: Blocks that a query reads.
        choosers: Groups, or heads, that choose.
    """

    block_size: int
    topk_blocks: int
    choosers: int

    def cost(self, lengths: Sequence[int], keys: Sequence[int], rectangular: bool) -> PatternCost:
        """See :class:`Pattern`."""
        size, topk = self.block_size, self.topk_blocks
        if rectangular:
            if max(keys, default=0) <= topk * size:
                return PatternCost(attended=_squares(lengths, keys))
            scored = sum(q * -(-k // size) for q, k in zip(lengths, keys, strict=True))
            return PatternCost(attended=sum(lengths) * topk * size, scored=self.choosers * scored)
        attended = scored = 0
        for queries, seen in zip(lengths, keys, strict=True):
            attended += block_pairs(queries, seen, size, topk)
            if seen > topk * size:
                scored += _floor_sum(seen, size) - _floor_sum(seen - queries, size)
        return PatternCost(attended=attended, scored=self.choosers * scored)


@dataclass(frozen=True, slots=True, kw_only=True)
class NativePattern:
    """Sizes of :class:`~keyekit.nn.attention.nsa.NSA`.

    Args:
        compress_block: Tokens of a summary.
        compress_stride: Tokens from one summary to the next.
        select_block: Tokens of a selected block.
        topk_blocks: Blocks that a query reads.
        window: Tokens of the sliding branch.
        num_heads: Query heads.
        compressor_dim: Inner width of the perceptrons that summarise.
    """

    compress_block: int
    compress_stride: int
    select_block: int
    topk_blocks: int
    window: int
    num_heads: int
    compressor_dim: int

    def cost(self, lengths: Sequence[int], keys: Sequence[int], rectangular: bool) -> PatternCost:
        """See :class:`Pattern`."""
        covered = self.topk_blocks * self.select_block
        blocks = BlockPattern(block_size=self.select_block, topk_blocks=self.topk_blocks, choosers=0)
        selected = blocks.cost(lengths, keys, rectangular).attended
        total, long, summarised = 0, 0, 0
        for queries, seen in zip(lengths, keys, strict=True):
            pairs = self._summary_pairs(queries, seen, rectangular)
            total += pairs
            long += pairs if seen > covered or (rectangular and max(keys) > covered) else 0
            summarised += self._summaries(seen) - self._summaries(seen - queries)
        if rectangular:
            near = computed_pairs(tuple(lengths), tuple(keys), self.window)
            nothing = sum(lengths)  # the key that stands for nothing
        else:
            near = sum(windowed_pairs(q, k, self.window) for q, k in zip(lengths, keys, strict=True))
            nothing = 0
        return PatternCost(
            attended=total + nothing + selected + near, scored=self.num_heads * long, summarised=summarised
        )

    def _summaries(self, keys: int) -> int:
        return max(keys - self.compress_block + self.compress_stride, 0) // self.compress_stride

    def _summary_pairs(self, queries: int, keys: int, rectangular: bool) -> int:
        """Pairs of a query and a summary of tokens up to its own."""
        if rectangular:
            return queries * self._summaries(keys)
        missing, stride = self.compress_block - 1, self.compress_stride
        # A query that sees n tokens sees ceil((n - missing) / stride) summaries.
        late, early = max(keys - missing, 0), max(keys - queries - missing, 0)
        return _ceil_sum(late, stride) - _ceil_sum(early, stride)


def block_pairs(queries: int, keys: int, size: int, topk: int) -> int:
    """Pairs of a query and a key in the blocks it reads: its own up to itself, and as many past ones as there are or may be.

    Example:
        >>> block_pairs(5, 5, size=2, topk=1), block_pairs(5, 5, size=2, topk=2), block_pairs(1, 9, size=2, topk=3)
        (7, 13, 5)
    """

    def up_to(count: int) -> int:  # over the first ``count`` positions
        full, rest = divmod(count, size)
        own = full * size * (size + 1) // 2 + rest * (rest + 1) // 2
        past = sum(min(block, topk - 1) for block in range(min(full, topk))) + max(full - topk, 0) * (topk - 1)
        return own + size * (size * past + rest * min(full, topk - 1))

    return up_to(keys) - up_to(keys - queries)


def pattern_of(attention: Attention) -> Pattern | None:
    """The pattern of a layer; ``None`` for dense attention, DSA and foreign schemes."""
    spec = attention.spec
    if isinstance(attention, SlidingWindow):
        return WindowPattern(
            window=attention.window,
            sinks=attention.sinks,
            sink_width=0 if attention.sink_logits is None else 8,
            head_dim=spec.head_dim,
        )
    if isinstance(attention, BlockTopK):
        return BlockPattern(
            block_size=attention.block_size, topk_blocks=attention.topk_blocks, choosers=attention.choosers
        )
    if isinstance(attention, NSA):
        return NativePattern(
            compress_block=attention.compress_block,
            compress_stride=attention.compress_stride,
            select_block=attention.select_block,
            topk_blocks=attention.topk_blocks,
            window=attention.window,
            num_heads=spec.num_heads,
            compressor_dim=attention.key_compressor.enter.out_features,
        )
    return None


def _squares(lengths: Sequence[int], keys: Sequence[int]) -> int:
    return sum(queries * seen for queries, seen in zip(lengths, keys, strict=True))


def _floor_sum(count: int, size: int) -> int:
    """Sum of ``position // size`` over the first ``count`` positions."""
    full, rest = divmod(count, size)
    return size * full * (full - 1) // 2 + rest * full


def _ceil_sum(count: int, size: int) -> int:
    """Sum of ``ceil(n / size)`` over n from 1 to ``count``."""
    return count + _floor_sum(count, size)
