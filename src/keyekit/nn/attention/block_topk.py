"""Attention to the best blocks of earlier keys, chosen by the mean of their keys."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.attention.base import Attention, AttentionOutput, GroupedQueryProjection, LayerContext
from keyekit.nn.attention.blocks import all_blocks, attend_to_rows, best_blocks, block_rows, rows_share
from keyekit.nn.attention.cached import cached_attention
from keyekit.nn.attention.padded import padded_plan, query_positions
from keyekit.nn.attention.segmented import segmented_attention
from keyekit.nn.spec import LayerSpec

__all__ = ["BlockTopK", "block_means", "block_scores"]

_CHUNK = 1024
"""Queries that are scored at a time, so that scores of a long sequence need not all be held."""


class BlockTopK(Attention):
    """Every token attends to its own block of keys and to the past blocks whose mean key fits it best (MoBA).

    Blocks are counted from the beginning of each sequence, so that all past blocks are complete; of the own one a token sees
    what is not in the future. The score of a block is the product of the query with the mean of its (rotated) keys. Nothing is
    trained for the choice and no gradient passes through it (MoBA, arXiv:2502.13189, section 2.2).

    Where no sequence has more than ``topk_blocks`` blocks, nothing is scored: every query reads all earlier tokens. The
    selection that a layer reports and replays is ``[T, G, N]`` (or ``[T, H, N]``) blocks, ascending, -1 in the unused tail.

    Args:
        spec: Sizes of the layer, filled in by the decoder.
        block_size: Tokens of a block.
        topk_blocks: Blocks that a query reads, its own included.
        choose_per: Who chooses: each ``group`` of query heads by the sum of its heads' scores, so that keys are read once for
            all of them (MiniMax-M3, NSA), or each ``head`` by itself (MoBA).
        implementation: Of the attention over what is chosen: ``auto`` (Triton on GPUs), ``triton``, or ``torch``.
    """

    takes_parts = True

    def __init__(
        self,
        spec: LayerSpec,
        block_size: int = 64,
        topk_blocks: int = 16,
        choose_per: Literal["group", "head"] = "group",
        implementation: str = "auto",
    ) -> None:
        super().__init__(spec)
        if block_size < 1:
            raise ValueError(f"block_size={block_size}: a block holds at least one token")
        if topk_blocks < 1:
            raise ValueError(f"topk_blocks={topk_blocks}: a query reads at least its own block, give 1 or more")
        if choose_per not in ("group", "head"):
            raise ValueError(f"choose_per={choose_per!r}: blocks are chosen per 'group' or per 'head'")
        self.block_size = block_size
        self.topk_blocks = topk_blocks
        self.choose_per = choose_per
        self.choosers = spec.num_groups if choose_per == "group" else spec.num_heads
        self.implementation = implementation
        self.projection = GroupedQueryProjection(spec)
        self.o_proj = nn.Linear(spec.num_heads * spec.head_dim, spec.dim, bias=False)

    def forward(self, hidden: Tensor, context: LayerContext) -> AttentionOutput:
        """Choose blocks and attend to their tokens; see :class:`Attention`."""
        query, key, value = self.projection(hidden, context.rotary)
        query, key, value = context.exchange.to_heads(query.to(value.dtype), key.to(value.dtype), value)
        segments, selection = context.segments, context.selection
        if selection is not None:
            (selection,) = context.exchange.to_heads(selection)
        choosers = self.choosers // context.exchange.ranks
        if selection is None and segments.key_maximum <= self.topk_blocks * self.block_size:
            selection = all_blocks(segments, self.block_size, choosers)
            rows = block_rows(selection, segments, self.block_size)
            mixed = _attend_to_all(query, key, value, context)
        else:
            if context.cache is not None:
                key = context.cache.extend("key", key, segments)
                value = context.cache.extend("value", value, segments)
            if selection is None:
                selection = self._choose(query, key, segments, choosers)
            rows = block_rows(selection, segments, self.block_size)
            mixed = attend_to_rows(query, key, value, rows, segments, self.implementation)
        (mixed,), (selection,) = context.exchange.to_tokens(mixed), context.exchange.to_tokens(selection)
        return AttentionOutput(
            hidden=self.o_proj(mixed.flatten(1)),
            selection=selection,
            meters={"selected_share": rows_share(rows, context)},
        )

    @torch.no_grad()
    def _choose(self, query: Tensor, key: Tensor, segments: Segments, choosers: int) -> Tensor:
        """``[T, choosers, N]`` int32 blocks."""
        plan = padded_plan(segments.lengths, segments.key_lengths, str(query.device))
        own = query_positions(segments)[1] // self.block_size
        width = min(self.topk_blocks, -(-segments.key_maximum // self.block_size))
        parts = []
        for group in plan.groups:
            means = block_means(key[group.columns], self.block_size)
            chosen = [
                best_blocks(block_scores(query[rows], means, choosers), own[rows], self.topk_blocks, width)
                for rows in group.rows.split(_CHUNK, dim=1)
            ]
            parts.append(torch.cat(chosen, dim=1))
        return plan.join(parts)


def block_means(key: Tensor, size: int) -> Tensor:
    """Mean keys ``[N, blocks, G, K]`` of padded keys ``[N, S, G, K]``, float32 or wider; the last may be incomplete."""
    wide = key.to(torch.promote_types(key.dtype, torch.float32))
    missing = -key.shape[1] % size
    return functional.pad(wide, (0, 0, 0, 0, 0, missing)).unflatten(1, (-1, size)).mean(dim=2)


def block_scores(query: Tensor, means: Tensor, choosers: int) -> Tensor:
    """Products of queries and mean keys, summed over the heads of a chooser.

    Args:
        query: ``[N, queries, H, K]``.
        means: ``[N, blocks, G, K]``.
        choosers: G or H.

    Returns:
        ``[N, queries, choosers, blocks]``.
    """
    groups = means.shape[2]
    # The sum over heads of products is the product of the sum.
    asking = query.to(means.dtype).unflatten(2, (choosers, -1)).sum(dim=3).unflatten(2, (groups, -1))
    with torch.autocast(query.device.type, enabled=False):
        return torch.einsum("nqgjk,nbgk->nqgjb", asking, means).flatten(2, 3)


def _attend_to_all(query: Tensor, key: Tensor, value: Tensor, context: LayerContext) -> Tensor:
    if context.cache is None:
        return segmented_attention(query, key, value, context.segments, causal=True)
    return cached_attention(query, key, value, context.cache, context.segments)
