"""Triton kernel of the lightning indexer: scores of a chunk of queries, with the maxima of sub-blocks of keys.

A tile of keys stays in shared memory while a loop that runs at run time takes one head of some queries after the other: one
product of the tensor cores, then one maximum and one multiply-add per (query, key) on its result. Nothing unrolls over heads,
so any number of heads compiles to the same registers, and the scores come out with keys along the fast axis, as they are
stored. Several programs share a multiprocessor: one multiplies while another adds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.launch import Launch
from keyekit_kernels.dsa.packed_rows import check_lengths, cut_tiles, to_device

__all__ = ["check_indexer", "index_logits", "indexer_launch", "launch_logits", "queries_of_run", "score_visible"]

WIDTHS = (16, 32, 64, 128)
NARROWEST_EIGHT_BIT = 32  # tensor cores take 32 channels of eight bits at a time
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)

# Registers and shared memory of each entry: tests/kernels/dsa/compiled.py. With 168 registers three programs fit on a
# multiprocessor. Float32 multiplies on the vector units, where small tiles avoid spills.
_HALF = Launch(128, 4, 3, queries=64, registers=168)
_TABLE = {
    torch.float32: Launch(64, 4, 1, queries=16),
    torch.float16: _HALF,
    torch.bfloat16: _HALF,
    torch.float8_e4m3fn: _HALF,
}
_RUN = 8
"""Times that a program takes ``queries`` more queries."""
_INTERPRETED = Launch(32, 4, 1, queries=16)


@triton.jit
def _score_tile(query, gate, rows, keys, num_heads, WIDTH: tl.constexpr, PRECISION: tl.constexpr):
    """Sum over heads of gate times relu(query . key) for ``rows [Q]`` of the pack and ``keys [WIDTH, N]``."""
    channel = tl.arange(0, WIDTH)
    scores = tl.zeros([rows.shape[0], keys.shape[1]], tl.float32)
    for head in range(0, num_heads):
        place = rows * num_heads + head
        q = tl.load(query + place[:, None] * WIDTH + channel[None, :])
        weight = tl.load(gate + place)
        products = tl.dot(q, keys, input_precision=PRECISION)
        scores += tl.maximum(products, 0.0, propagate_nan=tl.PropagateNan.ALL) * weight[:, None]
    return scores


@triton.jit
def score_visible(
    query,
    key,
    gate,
    key_scale,
    rows,
    column,
    first_key,
    last_visible,
    num_heads,
    scale,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Scaled scores of ``rows [Q]`` for the keys at ``column [N]``; columns that none of them sees repeat the last key."""
    place = first_key + tl.minimum(column, last_visible - 1).to(tl.int64)
    k = tl.load(key + place[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :])
    scores = _score_tile(query, gate, rows, tl.trans(k), num_heads, WIDTH, PRECISION)
    if key_scale is not None:
        return scores * (tl.load(key_scale + place) * scale)[None, :]
    return scores * scale


@triton.jit
def _store_scores(scores, maxima, rows, count, result, stride, SUB: tl.constexpr):
    """Write a tile of scores and the maxima of its sub-blocks; the pointers are at the first row and column of the program."""
    line, real = rows.to(tl.int64)[:, None], (rows < count)[:, None]
    column, group = tl.arange(0, result.shape[1]), tl.arange(0, result.shape[1] // SUB)
    tl.store(scores + line * stride + column[None, :], result, mask=real)
    highest = tl.max(tl.reshape(result, [result.shape[0], result.shape[1] // SUB, SUB]), 2)
    tl.store(maxima + line * (stride // SUB) + group[None, :], highest, mask=real)


@triton.jit
def index_logits_kernel(
    query,  # [T, HEADS, WIDTH]
    key,  # [S, WIDTH]
    gate,  # [T, HEADS] float32
    key_scale,  # [S] float32 or None
    tiles,  # [tiles, 4] int32: first query, queries, first key, keys that the first query sees
    scores,  # [rows, stride] float32
    maxima,  # [rows, stride / SUB] float32
    scale,
    first_row,
    stride,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
    SUB: tl.constexpr,
    FILL: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program per tile of keys and run of queries. NaN and keys that a query does not see become minus infinity.

    The keys stay in shared memory. One loop takes the heads of ``QUERIES`` queries after one another, then those of the next
    ones, so that the loads of queries never pause.
    """
    tile, start = tiles + tl.program_id(1) * 4, tl.program_id(0) * BLOCK
    first_query, count = tl.load(tile), tl.load(tile + 1)
    first_key, first_visible = tl.load(tile + 2).to(tl.int64), tl.load(tile + 3)
    last_visible = first_visible + count - 1
    row, column, channel = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    steps = (count + QUERIES - 1) // QUERIES
    blind = tl.where(start < last_visible, tl.maximum(start - first_visible + 1, 0) // QUERIES, steps)
    # Wide numbers are scalars: offsets inside a run fit into 32 bits.
    query += first_query.to(tl.int64) * (HEADS * WIDTH)
    gate += first_query.to(tl.int64) * HEADS
    scores += (first_query - first_row).to(tl.int64) * stride + start
    maxima += (first_query - first_row).to(tl.int64) * (stride // SUB) + start // SUB
    if FILL:
        for step in range(0, blind):
            nothing = tl.full([QUERIES, BLOCK], float("-inf"), tl.float32)
            _store_scores(scores, maxima, step * QUERIES + row, count, nothing, stride, SUB)
    if blind < steps:
        place = first_key + tl.minimum(start + column, last_visible - 1)
        # Turned here, or every head would write the tile to shared memory anew (Triton 3.9).
        k = tl.trans(tl.load(key + place[:, None] * WIDTH + channel[None, :]))
        factor = tl.full([BLOCK], 1.0, tl.float32) * scale
        if key_scale is not None:
            factor = tl.load(key_scale + place) * scale
        found = tl.zeros([QUERIES, BLOCK], tl.float32)
        for turn in range(blind * HEADS, steps * HEADS):
            head = turn % HEADS  # pyright: ignore[reportOperatorIssue]
            rows = turn // HEADS * QUERIES + row
            at = tl.minimum(rows, count - 1) * HEADS + head
            q = tl.load(query + (at * WIDTH)[:, None] + channel[None, :])
            weight = tl.load(gate + at)
            products = tl.dot(q, k, input_precision=PRECISION)
            found += tl.maximum(products, 0.0, propagate_nan=tl.PropagateNan.ALL) * weight[:, None]
            if head == HEADS - 1:
                result = found * factor[None, :]
                allowed = (start + column[None, :] < (first_visible + rows)[:, None]) & (result == result)
                _store_scores(scores, maxima, rows, count, tl.where(allowed, result, float("-inf")), stride, SUB)
                found = tl.zeros([QUERIES, BLOCK], tl.float32)


@torch.no_grad()
def index_logits(
    query: Tensor,
    key: Tensor,
    gate: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    rows: range | None = None,
    *,
    query_scale: Tensor | None = None,
    key_scale: Tensor | None = None,
    sub_block: int = 8,
    skip: int = 0,
    fill: bool = True,
    out: tuple[Tensor, Tensor] | None = None,
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """Score the keys that consecutive packed queries see, and take the maximum of every ``sub_block`` of them.

    The queries of a sequence are its last positions; column s of a row is the s-th key of the row's own sequence.

    Args:
        query: ``[T, I, indexer_dim]`` contiguous; float32, float16, bfloat16 or float8_e4m3fn.
        key: ``[S, indexer_dim]`` contiguous, in the query's dtype.
        gate: ``[T, I]`` raw head weights.
        query_lengths: Queries of each sequence.
        key_lengths: Keys of each sequence.
        rows: Packed queries to score; all by default.
        query_scale: ``[T, I]`` float32 scales of eight-bit queries.
        key_scale: ``[S]`` float32 scales of eight-bit keys.
        sub_block: Keys per maximum, a power of two.
        skip: Rows that see at most so many keys are left as they are in ``out``: top-k takes all their keys anyway.
        fill: Overwrite what no row of a tile sees with minus infinity too. Without it those columns keep what they held,
            which top-k never reads.
        out: Scores ``[len(rows), width]`` and maxima ``[len(rows), width / sub_block]``, both float32 and contiguous.
        launch: Parameters other than those of the table.

    Returns:
        Scores ``[len(rows), width]`` float32, minus infinity for NaN and for keys that are not seen, and their maxima. The
        width is the longest sequence rounded up to a tile, or that of ``out``.

    Raises:
        ValueError: If an argument does not fit; the message names it and says what is allowed.
    """
    weights = check_indexer(query, key, gate, query_scale, key_scale)
    check_lengths(query_lengths, key_lengths, query.shape[0], key.shape[0])
    rows = range(query.shape[0]) if rows is None else rows
    launch = indexer_launch(query) if launch is None else launch
    if sub_block < 1 or sub_block & (sub_block - 1) or sub_block > launch.block:
        raise ValueError(f"sub_block={sub_block}: a power of two up to the tile's {launch.block} keys is needed")
    if out is None:
        width = -(-max(key_lengths, default=0) // launch.block) * launch.block
        scores = query.new_empty(len(rows), width, dtype=torch.float32)
        maxima = query.new_empty(len(rows), width // sub_block, dtype=torch.float32)
    else:
        scores, maxima = out
        _check_out(scores, maxima, len(rows), sub_block, launch.block)
    tiles = cut_tiles(query_lengths, key_lengths, queries_of_run(launch), skip, rows)
    width = max((visible + count - 1 for _, count, _, visible in tiles), default=0)
    if width > scores.shape[1]:
        raise ValueError(f"out has {scores.shape[1]} columns, a query of rows sees {width} keys")
    table = to_device(tiles, torch.int32, query.device)
    columns = scores.shape[1] if fill else width
    launch_logits(query, key, weights, key_scale, table, (scores, maxima), rows.start, columns, fill, launch)
    return scores, maxima


def launch_logits(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    key_scale: Tensor | None,
    tiles: Tensor,
    out: tuple[Tensor, Tensor],
    first_row: int,
    columns: int,
    fill: bool,
    launch: Launch,
) -> None:
    """Launch the kernel of :func:`index_logits` on checked arguments.

    Args:
        query: ``[T, I, indexer_dim]``.
        key: ``[S, indexer_dim]``.
        weights: ``[T, I]`` float32 gates with the queries' scales.
        key_scale: ``[S]`` float32 or None.
        tiles: ``[tiles, 4]`` int32 from :func:`~keyekit_kernels.dsa.packed_rows.cut_tiles` in runs of
            :func:`queries_of_run`.
        out: Scores and maxima.
        first_row: Packed query of the first row of ``out``.
        columns: Leading columns of ``out`` to visit.
        fill: See :func:`index_logits`.
        launch: Parameters.
    """
    scores, maxima = out
    if not tiles.shape[0] or not columns:
        return
    index_logits_kernel[(-(-columns // launch.block), tiles.shape[0])](
        query,
        key,
        weights,
        key_scale,
        tiles,
        scores,
        maxima,
        query.shape[2] ** -0.5,  # Keye-VL-2.0 sheet 4.1 items 6 and 7: no power of the number of heads
        first_row,
        scores.shape[1],
        HEADS=query.shape[1],
        WIDTH=query.shape[2],
        QUERIES=launch.queries,
        BLOCK=launch.block,
        SUB=scores.shape[1] // maxima.shape[1],
        FILL=fill,
        PRECISION="ieee",
        num_warps=launch.warps,  # pyright: ignore[reportCallIssue]
        num_stages=launch.stages,  # pyright: ignore[reportCallIssue]
        maxnreg=launch.registers,  # pyright: ignore[reportCallIssue]
    )


def queries_of_run(launch: Launch) -> int:
    """Queries of one program, for :func:`~keyekit_kernels.dsa.packed_rows.cut_tiles`."""
    return launch.queries * _RUN


def indexer_launch(query: Tensor) -> Launch:
    """The table's parameters for indexer queries ``[T, I, indexer_dim]``, by their device and dtype."""
    return _INTERPRETED if query.device.type == "cpu" else _TABLE[query.dtype]


def check_indexer(
    query: Tensor, key: Tensor, gate: Tensor, query_scale: Tensor | None, key_scale: Tensor | None
) -> Tensor:
    """Refuse indexer tensors that the kernels cannot take.

    Returns:
        ``[T, I]`` float32 gates with the queries' scales, which only ever meet them as a product.

    Raises:
        ValueError: If a shape, a width, a dtype, a layout or a missing scale does not fit.
    """
    if query.ndim != 3 or key.ndim != 2 or query.shape[2] != key.shape[1]:
        raise ValueError(
            f"query is {list(query.shape)} and key {list(key.shape)}: [T, I, indexer_dim] and [S, indexer_dim] are needed"
        )
    if query.shape[2] not in WIDTHS:
        raise ValueError(f"query has indexer_dim={query.shape[2]}: the kernels take {WIDTHS}")
    if query.dtype not in DTYPES or key.dtype != query.dtype:
        raise ValueError(f"query is {query.dtype} and key {key.dtype}: one dtype of {DTYPES} is needed")
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        raise ValueError("query is bfloat16 on the processor, where Triton's interpreter rounds wrongly: use float32")
    if gate.shape != query.shape[:2]:
        raise ValueError(f"gate is {list(gate.shape)}: {list(query.shape[:2])} is needed, a weight per query and head")
    eight_bit = query.dtype == torch.float8_e4m3fn
    if eight_bit and query.shape[2] < NARROWEST_EIGHT_BIT:
        raise ValueError(f"query has indexer_dim={query.shape[2]}: float8_e4m3fn needs at least {NARROWEST_EIGHT_BIT}")
    for name, scale, shape in (("query_scale", query_scale, gate.shape), ("key_scale", key_scale, key.shape[:1])):
        if (scale is not None) != eight_bit:
            raise ValueError(f"{name}: float8_e4m3fn needs scales, other dtypes take none; query is {query.dtype}")
        if scale is not None and (scale.shape != shape or scale.dtype != torch.float32):
            raise ValueError(f"{name} is {list(scale.shape)} {scale.dtype}: {list(shape)} torch.float32 is needed")
    for name, tensor in (("query", query), ("key", key), ("key_scale", key_scale)):
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} is not contiguous: pass {name}.contiguous()")
    weights = gate.float() if query_scale is None else gate.float() * query_scale
    return weights.contiguous()


def _check_out(scores: Tensor, maxima: Tensor, num_rows: int, sub_block: int, block: int) -> None:
    """Refuse buffers of another shape, dtype or layout."""
    width = scores.shape[1]
    if width % block:
        raise ValueError(f"out has {width} columns: a multiple of the tile's {block} keys is needed")
    shapes = [(num_rows, width), (num_rows, width // sub_block)]
    for tensor, shape in zip((scores, maxima), shapes, strict=True):
        if tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            raise ValueError(
                f"out holds {list(tensor.shape)} {tensor.dtype}: contiguous float32 {list(shape)} is needed"
            )
