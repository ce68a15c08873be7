"""Learnt summaries of overlapping blocks of keys, attention to them, and what it says about larger blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.attention.blocks import best_blocks
from keyekit.nn.attention.padded import PaddedPlan, padded_plan, query_positions

__all__ = ["BlockCompressor", "CompletedBlocks", "Summaries", "block_importance", "completed_blocks"]

_CHUNK = 512
"""Queries whose attention to summaries is held at a time to rank larger blocks."""


class BlockCompressor(nn.Module):
    """Perceptron that makes one row of a block of rows, whose places in the block it knows (NSA, section 3.3.1).

    All groups share it.

    Args:
        block: Tokens of a block, l.
        head_dim: Width K of a row.
        inner_dim: Width between its two layers.
    """

    def __init__(self, block: int, head_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(block, head_dim) * 0.02)
        self.enter = nn.Linear(block * head_dim, inner_dim, bias=False)
        self.leave = nn.Linear(inner_dim, head_dim, bias=False)

    def forward(self, blocks: Tensor) -> Tensor:
        """Compress ``blocks [M, l, G, K]`` to ``[M, G, K]``."""
        placed = blocks + self.position[:, None].to(blocks.dtype)
        return self.leave(functional.gelu(self.enter(placed.transpose(1, 2).flatten(2))))


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedBlocks:
    """The blocks of a pack: ``block`` tokens, beginning every ``stride`` tokens from the beginning of each sequence.

    Args:
        rows: ``[M]`` int64 packed queries that complete a block; a block is theirs.
        members: ``[M, block]`` int64 packed keys of these blocks.
        ends: ``[C]`` int64 packed keys that complete a block, earlier ones included.
        counts: Blocks of each sequence; they add up to C.
    """

    rows: Tensor
    members: Tensor
    ends: Tensor
    counts: tuple[int, ...]


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # indices made while evaluating are used in training too
def completed_blocks(
    lengths: tuple[int, ...], key_lengths: tuple[int, ...], block: int, stride: int, device: str
) -> CompletedBlocks:
    """Find the blocks that a pack completes.

    Args:
        lengths: Queries of each sequence, its last positions.
        key_lengths: Keys of each sequence.
        block: Tokens of a block.
        stride: Tokens from the beginning of a block to that of the next.
        device: Where the indices go.
    """
    rows, new, ends, counts = [], [], [], []
    starts, key_starts = (0, *accumulate(lengths)), (0, *accumulate(key_lengths))
    for start, key_start, queries, keys in zip(starts[:-1], key_starts[:-1], lengths, key_lengths, strict=True):
        last = torch.arange(block - 1, max(keys, block - 1), stride)
        fresh = last[last >= keys - queries]
        rows.append(fresh - (keys - queries) + start)
        new.append(fresh + key_start)
        ends.append(last + key_start)
        counts.append(len(last))
    nothing = torch.zeros(0, dtype=torch.int64)
    members = torch.cat([*new, nothing])[:, None] + torch.arange(1 - block, 1)
    return CompletedBlocks(
        rows=torch.cat([*rows, nothing]).to(device),
        members=members.to(device),
        ends=torch.cat([*ends, nothing]).to(device),
        counts=tuple(counts),
    )


class Summaries:
    """The summaries that the queries of a pack may see: of every block that is complete at their place.

    Args:
        key: ``[C, G, K]`` rotated keys.
        value: ``[C, G, K]``.
        counts: Blocks of each sequence.
        segments: Sequences of the pack.
        block: Tokens of a block.
        stride: Tokens from the beginning of a block to that of the next.
    """

    def __init__(
        self, key: Tensor, value: Tensor, counts: tuple[int, ...], segments: Segments, block: int, stride: int
    ) -> None:
        # One more row, of zeros: a safe place to point at for a sequence without summaries.
        self.key, self.value = functional.pad(key, (0, 0, 0, 0, 0, 1)), functional.pad(value, (0, 0, 0, 0, 0, 1))
        self.segments, self.block, self.stride = segments, block, stride
        self.plan: PaddedPlan = padded_plan(segments.lengths, counts, str(key.device))
        self.positions = query_positions(segments)[1]

    def attend(self, query: Tensor) -> Tensor:
        """Attention ``[T, H, K]`` of ``query [T, H, K]``; zeros where there is nothing to see yet."""
        parts = []
        for group in self.plan.groups:
            # A key without value stands for nothing, seen where nothing else is.
            key = functional.pad(self.key[group.columns], (0, 0, 0, 0, 0, 1))
            value = functional.pad(self.value[group.columns], (0, 0, 0, 0, 0, 1))
            seen = self._seen(group.rows, group.columns.shape[1])
            allowed = torch.cat([seen, ~seen.any(dim=-1, keepdim=True)], dim=-1)[:, None]
            attended = functional.scaled_dot_product_attention(
                query[group.rows].transpose(1, 2),
                key.transpose(1, 2),
                value.transpose(1, 2),
                attn_mask=allowed,
                enable_gqa=query.shape[1] != key.shape[2],
            )
            parts.append(attended.transpose(1, 2))
        return self.plan.join(parts)

    @torch.no_grad()
    def choose(self, query: Tensor, size: int, topk: int, initial: int, local: int) -> Tensor:
        """Blocks ``[T, G, N]`` int32 of ``size`` tokens by the attention of all heads of a group to what overlaps them.

        Args:
            query: ``[T, H, K]``.
            size: Tokens of a block.
            topk: Blocks to choose, the fixed ones included.
            initial: First blocks that are always chosen.
            local: Last blocks that are always chosen, the own one included.
        """
        num_blocks = -(-self.segments.key_maximum // size)
        parts = []
        for group in self.plan.groups:
            key = self.key[group.columns]
            chosen = []
            for rows in group.rows.split(_CHUNK, dim=1):
                own = self.positions[rows] // size
                worth = block_importance(self._mass(query[rows], key, rows), self.block, self.stride, size, num_blocks)
                block = torch.arange(num_blocks, device=worth.device)
                fixed = (block < initial) | (block > own[..., None] - local)
                worth = worth.masked_fill(fixed[:, :, None], torch.inf)
                chosen.append(best_blocks(worth, own, topk, min(topk, num_blocks)))
            parts.append(torch.cat(chosen, dim=1))
        return self.plan.join(parts)

    def _mass(self, query: Tensor, key: Tensor, rows: Tensor) -> Tensor:
        """Probabilities ``[N, queries, G, X]`` of the summaries, summed over the heads of a group; float32 or wider."""
        wide = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            asking = query.to(wide).unflatten(2, (key.shape[2], -1))
            scores = torch.einsum("nqgjk,nxgk->nqgjx", asking, key.to(wide)) * query.shape[-1] ** -0.5
        seen = self._seen(rows, key.shape[1])[:, :, None, None]
        return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1).nan_to_num(nan=0.0).sum(dim=3)

    def _seen(self, rows: Tensor, count: int) -> Tensor:
        """``[N, queries, count]``: which blocks are complete at the place of a query."""
        end = torch.arange(count, device=rows.device) * self.stride + self.block - 1
        return end <= self.positions[rows][..., None]


def block_importance(attention: Tensor, block: int, stride: int, size: int, num_blocks: int) -> Tensor:
    """Attention to compressed blocks as importance of the larger blocks that they overlap (NSA, equation 9).

    A compressed block counts once for every ``stride`` tokens that it shares with a larger one. (The paper's indices run the
    other way about; this is the overlap that its text describes.)

    Args:
        attention: ``[..., C]`` probabilities of the compressed blocks.
        block: Tokens of a compressed block; a multiple of ``stride``.
        stride: Tokens from the beginning of a compressed block to that of the next.
        size: Tokens of a larger block; a multiple of ``stride``.
        num_blocks: Larger blocks.

    Returns:
        ``[..., num_blocks]``.

    Example:
        >>> block_importance(torch.tensor([1.0, 10.0, 100.0]), block=4, stride=2, size=4, num_blocks=2).tolist()
        [12.0, 210.0]
    """
    covers, holds = block // stride, size // stride
    pieces = num_blocks * holds  # of ``stride`` tokens; piece s lies in the compressed blocks s - covers + 1 … s
    padded = functional.pad(attention, (covers - 1, pieces - attention.shape[-1]))
    return padded.unfold(-1, covers, 1).sum(dim=-1).unflatten(-1, (num_blocks, holds)).sum(dim=-1)
