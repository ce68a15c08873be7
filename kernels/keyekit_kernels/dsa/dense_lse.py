"""Log-sum-exp of dense causal attention, where no attention kernel has left it, and the tiles that walk over all keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.attention_forward import takes_small_tiles
from keyekit_kernels.dsa.attention_tiles import EMPTY
from keyekit_kernels.dsa.launch import Launch
from keyekit_kernels.dsa.packed_rows import cut_tiles, to_device

__all__ = ["attention_log_normaliser", "check_order", "tile_table"]

_NORMALISER = Launch(block=64, warps=4, stages=3, queries=128)
_SMALL = Launch(block=16, warps=4, stages=1, queries=16)
"""For the interpreter, where borders are tested and not speed, and for float32, whose tiles fill shared memory."""


@triton.jit
def log_normaliser_kernel(
    query,  # [T, HEADS, WIDTH]
    key,  # [S, GROUPS, WIDTH]
    tiles,  # [tiles, 4] int32: first query, queries, first key, keys that the first query sees
    lse,  # [T, HEADS] float32
    scale,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per tile of queries and head."""
    tile, head = tiles + tl.program_id(0) * 4, tl.program_id(1)
    row, column, channel = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    size, visible = tl.load(tile + 1), tl.load(tile + 3)
    # Wide numbers are scalars: a tile's own offsets fit into 32 bits and are constants to the compiler.
    first, key_start = tl.load(tile).to(tl.int64) * HEADS + head, tl.load(tile + 2).to(tl.int64)
    query += first * WIDTH
    key += (key_start * GROUPS + head // (HEADS // GROUPS)) * WIDTH
    real = row < size
    q = tl.load(query + row[:, None] * (HEADS * WIDTH) + channel, mask=real[:, None], other=0.0)
    peak, total = tl.full([QUERIES], EMPTY, tl.float32), tl.zeros([QUERIES], tl.float32)
    bound = visible + size - 1
    for start in range(0, bound, BLOCK):
        place = column[:, None] * (GROUPS * WIDTH) + channel
        k = tl.load(key + place, mask=(start + column < bound)[:, None], other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        logits = tl.where(start + column[None, :] < visible + row[:, None], logits, EMPTY)
        higher = tl.maximum(peak, tl.max(logits, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        peak = higher
        key += BLOCK * GROUPS * WIDTH
    tl.store(lse + first + row * HEADS, peak + tl.log(total), mask=real)


def attention_log_normaliser(
    query: Tensor, key: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int], scale: float
) -> Tensor:
    """Log-sum-exp of dense causal attention, where no attention kernel has left it.

    Args:
        query: ``[T, H, K]`` contiguous.
        key: ``[S, G, K]`` contiguous.
        query_lengths: Queries of each sequence, its last positions; rows behind their sum are left out.
        key_lengths: Keys of each sequence.
        scale: Factor on the dot products.

    Returns:
        ``[T, H]`` float32 natural log-sum-exp, -1e30 in the rows left out.
    """
    num_heads, width = query.shape[1:]
    launch = _SMALL if takes_small_tiles(query) or width < 64 else _NORMALISER
    lse = query.new_full(query.shape[:2], EMPTY.value, dtype=torch.float32)
    tiles, table = tile_table(query_lengths, key_lengths, launch.queries, query.device)
    if tiles:
        log_normaliser_kernel[(len(tiles), num_heads)](
            query,
            key,
            table,
            lse,
            scale,
            HEADS=num_heads,
            GROUPS=key.shape[1],
            WIDTH=width,
            QUERIES=launch.queries,
            BLOCK=launch.block,
            num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
            num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        )
    return lse


def tile_table(
    query_lengths: Sequence[int], key_lengths: Sequence[int], size: int, device: torch.device
) -> tuple[list[tuple[int, int, int, int]], Tensor]:
    """Tiles of queries as :func:`~keyekit_kernels.dsa.packed_rows.cut_tiles` gives them, the longest work first.

    Returns:
        The tiles, and the same as ``[tiles, 4]`` int32 on the device.

    Raises:
        ValueError: If a sequence has more queries than keys.
    """
    check_order(query_lengths, key_lengths)
    tiles = sorted(cut_tiles(query_lengths, key_lengths, size), key=lambda tile: -tile[3])
    return tiles, to_device([number for tile in tiles for number in tile], torch.int32, device).view(-1, 4)


def check_order(query_lengths: Sequence[int], key_lengths: Sequence[int]) -> None:
    """Refuse sequences that have more queries than keys.

    Raises:
        ValueError: Naming the numbers of the first one.
    """
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        if queries > keys:
            raise ValueError(
                f"a sequence has {queries} queries and {keys} keys: queries are the last positions of their sequence"
            )
