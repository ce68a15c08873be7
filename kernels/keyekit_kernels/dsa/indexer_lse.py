"""Log-sum-exp of the lightning indexer's scores, online: no score is written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.indexer import check_indexer, indexer_launch, score_visible
from keyekit_kernels.dsa.launch import Launch
from keyekit_kernels.dsa.packed_rows import check_lengths, cut_tiles, to_device

__all__ = ["index_lse"]

EMPTY = tl.constexpr(-1e30)  # finite, so that a range without keys stays free of NaN

_PROGRAMS = 264  # two for each multiprocessor of an H100 or H200


@triton.jit
def index_lse_kernel(
    query,  # [T, heads, WIDTH]
    key,  # [S, WIDTH]
    gate,  # [T, heads] float32
    key_scale,  # [S] float32 or None
    tiles,  # [tiles, 4] int32
    partial,  # [splits, T] float32
    num_heads,
    scale,
    num_queries,
    span,  # keys of a split, a multiple of BLOCK
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program per tile of queries and span of keys: the online log-sum-exp of its scores."""
    tile = tiles + tl.program_id(0) * 4
    first_query, count = tl.load(tile), tl.load(tile + 1)
    first_key, first_visible = tl.load(tile + 2).to(tl.int64), tl.load(tile + 3)
    last_visible = first_visible + count - 1
    row = tl.arange(0, QUERIES)
    rows = (first_query + tl.minimum(row, count - 1)).to(tl.int64)
    peak, total = tl.full([QUERIES], EMPTY, tl.float32), tl.zeros([QUERIES], tl.float32)
    begin = tl.program_id(1) * span
    for start in range(begin, tl.minimum(begin + span, last_visible), BLOCK):
        column = start + tl.arange(0, BLOCK)
        found = score_visible(
            query, key, gate, key_scale, rows, column, first_key, last_visible, num_heads, scale, WIDTH, PRECISION
        )
        allowed = column[None, :] < (first_visible + row)[:, None]
        found = tl.where(allowed, found, EMPTY)
        higher = tl.maximum(peak, tl.max(found, 1))
        total = total * tl.exp(peak - higher) + tl.sum(tl.where(allowed, tl.exp(found - higher[:, None]), 0.0), 1)
        peak = higher
    empty = total == 0.0
    lse = tl.where(empty, EMPTY, peak + tl.log(tl.where(empty, 1.0, total)))
    tl.store(partial + tl.program_id(1).to(tl.int64) * num_queries + first_query + row, lse, mask=row < count)


@torch.no_grad()
def index_lse(
    query: Tensor,
    key: Tensor,
    gate: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    *,
    query_scale: Tensor | None = None,
    key_scale: Tensor | None = None,
    launch: Launch | None = None,
) -> Tensor:
    """Log-sum-exp of each query's scores over the keys it sees; no score is written.

    Args:
        query: ``[T, I, indexer_dim]`` contiguous; float32, float16, bfloat16 or float8_e4m3fn.
        key: ``[S, indexer_dim]`` contiguous, in the query's dtype.
        gate: ``[T, I]`` raw head weights.
        query_lengths: Queries of each sequence, its last positions.
        key_lengths: Keys of each sequence.
        query_scale: ``[T, I]`` float32 scales of eight-bit queries.
        key_scale: ``[S]`` float32 scales of eight-bit keys.
        launch: Parameters other than those of the table.

    Returns:
        ``[T]`` float32, in nats.

    Raises:
        ValueError: If an argument does not fit.
    """
    weights = check_indexer(query, key, gate, query_scale, key_scale)
    check_lengths(query_lengths, key_lengths, query.shape[0], key.shape[0])
    launch = indexer_launch(query) if launch is None else launch
    tiles = cut_tiles(query_lengths, key_lengths, launch.queries)
    if not tiles:
        return query.new_empty(0, dtype=torch.float32)
    steps = -(-max(key_lengths) // launch.block)
    # Few tiles leave the device idle: then several programs share a tile's keys.
    per_split = -(-steps // min(max(_PROGRAMS // len(tiles), 1), steps))
    splits = -(-steps // per_split)
    partial = query.new_empty(splits, query.shape[0], dtype=torch.float32)
    index_lse_kernel[(len(tiles), splits)](
        query,
        key,
        weights,
        key_scale,
        to_device(tiles, torch.int32, query.device),
        partial,
        query.shape[1],
        query.shape[2] ** -0.5,
        query.shape[0],
        per_split * launch.block,
        WIDTH=query.shape[2],
        QUERIES=launch.queries,
        BLOCK=launch.block,
        PRECISION="ieee",
        num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
        num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
    )
    return partial.logsumexp(0)
