"""Attention over chosen blocks of keys: from a choice of blocks to the rows of their tokens, and over these."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.attention.base import LayerContext
from keyekit.nn.attention.padded import query_positions
from keyekit.nn.attention.share import real_segments
from keyekit_kernels import dsa
from keyekit_kernels.dsa.reference import select_topk

__all__ = ["all_blocks", "attend_to_rows", "best_blocks", "block_rows", "rows_share"]


def best_blocks(scores: Tensor, own: Tensor, topk: int, width: int) -> Tensor:
    """Choose blocks exactly and deterministically: the own one, and the best of those before it.

    Equal scores prefer the earlier block; NaN counts as minus infinity.

    Args:
        scores: ``[N, queries, choosers, blocks]``; infinity for what has to be chosen. The own block needs no score.
        own: ``[N, queries]`` block of each query, from the beginning of its sequence.
        topk: Blocks to choose at most, the own one included.
        width: Length of the result.

    Returns:
        ``[N, queries, choosers, width]`` int32 blocks, ascending, -1 in the unused tail.

    Example:
        >>> best_blocks(torch.tensor([[[[1.0, 3.0, 2.0, 9.0]]]]), torch.tensor([[2]]), topk=2, width=3).tolist()
        [[[[1, 2, -1]]]]
    """
    is_own = torch.arange(scores.shape[-1], device=scores.device) == own[..., None, None]
    ranked = scores.masked_fill(is_own, torch.inf).flatten(0, 2)
    visible = (own[..., None] + 1).expand(scores.shape[:3]).flatten()
    chosen = select_topk(ranked, visible, topk)
    return functional.pad(chosen, (0, width - chosen.shape[1]), value=-1).unflatten(0, scores.shape[:3])


def all_blocks(segments: Segments, size: int, choosers: int) -> Tensor:
    """``[T, choosers, N]`` int32 every block that a query sees: what any scores choose if enough may be chosen."""
    _, position = query_positions(segments)
    block = torch.arange(-(-segments.key_maximum // size), device=position.device)
    seen = torch.where(block <= position[:, None] // size, block, -1).int()
    return seen[:, None].expand(-1, choosers, -1)


def block_rows(blocks: Tensor, segments: Segments, size: int) -> Tensor:
    """Packed rows of the tokens of chosen blocks, up to the query's own.

    Args:
        blocks: ``[T, choosers, N]`` int32, ascending, -1 tail; counted from the beginning of each sequence.
        segments: Sequences of the pack.
        size: Tokens of a block.

    Returns:
        ``[T, choosers, N * size]`` int32, ascending, -1 tail.
    """
    owner, position = query_positions(segments)
    place = blocks[..., None] * size + torch.arange(size, device=blocks.device)
    seen = (blocks[..., None] >= 0) & (place <= position[:, None, None, None])
    rows = place + segments.key_offsets[owner][:, None, None, None]
    return torch.where(seen, rows, -1).flatten(2).int()


def attend_to_rows(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, segments: Segments, implementation: str
) -> Tensor:
    """Attention in which every group, or every head, has keys of its own choice.

    Each chooser is a pack of its own to the sparse attention of :mod:`keyekit_kernels.dsa`, which knows one selection a token.

    Args:
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        value: ``[S, G, K]``.
        rows: ``[T, G, M]`` or ``[T, H, M]`` int32 packed rows, ascending, -1 tail.
        segments: Sequences of the pack.
        implementation: ``"auto"``, ``"triton"`` or ``"torch"``.

    Returns:
        ``[T, H, K]``.
    """
    choosers, groups, num_keys = rows.shape[1], key.shape[1], key.shape[0]
    group = torch.arange(choosers, device=rows.device) * groups // choosers
    stacked = torch.where(rows >= 0, rows + (group * num_keys)[None, :, None], -1).int()
    lengths = segments.lengths * groups, segments.key_lengths * groups  # head by head, no two packs have the same keys
    mixed, _ = dsa.sparse_attention(
        query.unflatten(1, (choosers, -1)).transpose(0, 1).flatten(0, 1),
        key.transpose(0, 1).flatten(0, 1)[:, None],
        value.transpose(0, 1).flatten(0, 1)[:, None],
        stacked.transpose(0, 1).flatten(0, 1),
        query.shape[-1] ** -0.5,
        implementation,
        *(lengths if choosers == groups else (None, None)),
    )
    return mixed.unflatten(0, (choosers, -1)).transpose(0, 1).flatten(1, 2)


def rows_share(rows: Tensor, context: LayerContext) -> Tensor:
    """Chosen keys ``rows [T, choosers, N]`` over visible keys, over the queries of all samples and their choosers.

    The padding tail is left out.
    """
    queries, visible = 0, 0
    for length, keys in real_segments(context):
        queries += length
        visible += length * keys - length * (length - 1) // 2
    return (rows[:queries] >= 0).sum() / max(visible * rows.shape[1], 1)
