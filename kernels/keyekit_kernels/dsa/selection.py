"""Selection of packed queries: score a chunk, choose its keys, and use the same memory for the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keyekit_kernels.dsa.indexer import check_indexer, indexer_launch, launch_logits, queries_of_run
from keyekit_kernels.dsa.launch import Launch
from keyekit_kernels.dsa.packed_rows import (
    Chunk,
    check_lengths,
    cut_chunks,
    cut_tiles,
    remembered,
    to_device,
    visible_keys,
)
from keyekit_kernels.dsa.topk import select_topk, sub_block_of

__all__ = ["index_topk"]

_WORKSPACE = 1024 * 2**20
"""Bytes of one chunk of scores; half of it costs four hundredths of the time on an H200, for shorter launches."""


@torch.no_grad()
def index_topk(
    query: Tensor,
    key: Tensor,
    gate: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    topk: int,
    *,
    query_scale: Tensor | None = None,
    key_scale: Tensor | None = None,
    workspace: int = _WORKSPACE,
) -> Tensor:
    """Score and select chunk by chunk, causally and inside each sequence; no matrix of all queries and keys exists.

    Queries that see at most ``topk`` keys take all of them and are not scored.

    Args:
        query: ``[T, I, indexer_dim]`` contiguous packed indexer queries; float32, float16, bfloat16 or float8_e4m3fn.
        key: ``[S, indexer_dim]`` contiguous packed indexer keys, in the query's dtype.
        gate: ``[T, I]`` raw head weights.
        query_lengths: Queries of each sequence, its last positions.
        key_lengths: Keys of each sequence.
        topk: Keys to select per query.
        query_scale: ``[T, I]`` float32 scales of eight-bit queries.
        key_scale: ``[S]`` float32 scales of eight-bit keys.
        workspace: Bytes of the scores that exist at the same time; one row may exceed it.

    Returns:
        ``[T, N]`` int32 rows of the packed keys, ascending, -1 tail, with N = min(topk, longest sequence).

    Raises:
        ValueError: If an argument does not fit.
    """
    weights = check_indexer(query, key, gate, query_scale, key_scale)
    check_lengths(query_lengths, key_lengths, query.shape[0], key.shape[0])
    if topk < 1:
        raise ValueError(f"topk={topk}: at least one key is needed")
    width = min(topk, max(key_lengths, default=0))
    selected = torch.empty(query.shape[0], width, dtype=torch.int32, device=query.device)
    launch = indexer_launch(query)
    plan = _plan(tuple(query_lengths), tuple(key_lengths), width, workspace // 4, launch, query.device)
    largest = max(((chunk.stop - chunk.start) * chunk.width for chunk in plan.chunks), default=0)
    buffer = query.new_empty(largest + largest // 2, dtype=torch.float32)  # sub-blocks have two keys or more
    for chunk, table in zip(plan.chunks, plan.tables, strict=True):
        rows, size = slice(chunk.start, chunk.stop), (chunk.stop - chunk.start) * chunk.width
        scores = buffer[:size].view(-1, chunk.width) if size else buffer.new_empty(rows.stop - rows.start, 0)
        sub_block = sub_block_of(chunk.width)
        maxima = buffer[size : size + size // sub_block].view(scores.shape[0], chunk.width // sub_block)
        launch_logits(
            query, key, weights, key_scale, table, (scores, maxima), chunk.start, chunk.width, fill=False, launch=launch
        )
        select_topk(scores, maxima, plan.visible[rows], width, first_key=plan.first_key[rows], out=selected[rows])
    return selected


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is done with a pack, chunk by chunk.

    Args:
        chunks: Queries that are scored at the same time.
        tables: ``[tiles, 4]`` int32 for each chunk, as the indexer reads them.
        visible: ``[T]`` int32 keys that each query sees.
        first_key: ``[T]`` int32, the first of them.
    """

    chunks: list[Chunk]
    tables: tuple[Tensor, ...]
    visible: Tensor
    first_key: Tensor


@remembered
def _plan(
    query_lengths: tuple[int, ...],
    key_lengths: tuple[int, ...],
    width: int,
    budget: int,
    launch: Launch,
    device: torch.device,
) -> _Plan:
    """Chunks of at most ``budget`` scores; queries that see at most ``width`` keys are not scored."""
    chunks = cut_chunks(query_lengths, key_lengths, budget, launch.block, skip=width)
    tiles = [
        cut_tiles(query_lengths, key_lengths, queries_of_run(launch), width, range(chunk.start, chunk.stop))
        for chunk in chunks
    ]
    table = to_device([tile for group in tiles for tile in group], torch.int32, device)
    tables = table.split([len(group) for group in tiles])
    return _Plan(chunks, tables, *visible_keys(query_lengths, key_lengths, device))
