"""Triton kernels of grouped SwiGLU experts: products of sorted visits with the matrices of their experts.

Visits are rows, sorted by expert. A tile of rows never crosses experts, so a product is an ordinary one that finds its matrix
in a table. Rows are gathered where they are multiplied, activations and router weights are applied where the product lies in
registers; what a token's experts made is added up once per token, in the order of its choices. Nothing is atomic.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "activation_gradient_kernel",
    "combine_kernel",
    "gate_up_kernel",
    "matrix_gradient_kernel",
    "rows_kernel",
    "tile_table_kernel",
]


@triton.jit
def tile_table_kernel(counts, starts, table, EXPERTS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr) -> None:
    """One program per expert writes its tiles ``[expert, first row, end of the expert]`` and where its rows begin."""
    expert, index = tl.program_id(0), tl.arange(0, PADDED)
    count = tl.load(counts + index, mask=index < EXPERTS, other=0).to(tl.int32)
    tiles = (count + ROWS - 1) // ROWS
    before = index < expert
    tile, row = tl.sum(tl.where(before, tiles, 0), 0), tl.sum(tl.where(before, count, 0), 0)
    end = row + tl.sum(tl.where(index == expert, count, 0), 0)
    tl.store(starts + expert, row)
    if expert == EXPERTS - 1:
        tl.store(starts + EXPERTS, end)
    for first in range(row, end, ROWS):  # pyright: ignore[reportArgumentType]
        tl.store(table + tile * 3, expert)
        tl.store(table + tile * 3 + 1, first)
        tl.store(table + tile * 3 + 2, end)
        tile += 1


@triton.jit
def _sigmoid(x) -> tl.tensor:
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gate_up_kernel(
    source,  # [T, WIDTH]
    tokens,  # [V] the row of source that each visit takes
    matrices,  # [E, WIDTH, 2 * INNER], gates first
    table,  # [tiles, 3] int32, -1 behind the last
    projected,  # [V, 2 * INNER] or None
    activated,  # [V, INNER]
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """One program per tile of rows and of the inner width: gate and up projection side by side, then silu(gate) * up."""
    tile, column = table + tl.program_id(1) * 3, tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    expert, first, end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    if expert >= 0:
        row, depth = first + tl.arange(0, ROWS), tl.arange(0, DEPTH)
        token = tl.load(tokens + tl.minimum(row, end - 1)).to(tl.int64)
        rows = source + token[:, None] * WIDTH + depth[None, :]
        gates = matrices + expert.to(tl.int64) * (WIDTH * 2 * INNER) + depth[:, None] * (2 * INNER) + column[None, :]
        gate, up = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
        for _ in range(0, WIDTH, DEPTH):
            x = tl.load(rows)
            gate = tl.dot(x, tl.load(gates), gate, input_precision="ieee")
            up = tl.dot(x, tl.load(gates + INNER), up, input_precision="ieee")
            rows += DEPTH
            gates += DEPTH * 2 * INNER
        there = (row < end)[:, None]
        kind = activated.dtype.element_ty
        gate, up = gate.to(kind), up.to(kind)
        if projected is not None:
            at = projected + row.to(tl.int64)[:, None] * (2 * INNER) + column[None, :]
            tl.store(at, gate, mask=there)
            tl.store(at + INNER, up, mask=there)
        gate, up = gate.to(tl.float32), up.to(tl.float32)
        made = gate * _sigmoid(gate) * up
        tl.store(activated + row.to(tl.int64)[:, None] * INNER + column[None, :], made.to(kind), mask=there)


@triton.jit
def rows_kernel(
    source,  # rows of INPUT numbers
    source_rows,  # [V] the row of source that each visit takes, or None: its own
    matrices,  # [E, INPUT, OUTPUT] by strides
    table,  # [tiles, 3] int32, -1 behind the last
    factors,  # [V] factor of each row, or None
    out,  # [V, OUTPUT]
    matrix_stride,
    input_stride,
    output_stride,
    INPUT: tl.constexpr,
    OUTPUT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """One program per tile of rows and of outputs: rows times the matrix of their expert."""
    tile, column = table + tl.program_id(1) * 3, tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    expert, first, end = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    if expert >= 0:
        row, depth = first + tl.arange(0, ROWS), tl.arange(0, DEPTH)
        visit = tl.minimum(row, end - 1)
        place = (visit if source_rows is None else tl.load(source_rows + visit)).to(tl.int64)
        rows = source + place[:, None] * INPUT + depth[None, :]
        weights = matrices + expert.to(tl.int64) * matrix_stride
        weights += depth[:, None] * input_stride + column[None, :] * output_stride
        found = tl.zeros([ROWS, COLUMNS], tl.float32)
        for _ in range(0, INPUT, DEPTH):
            found = tl.dot(tl.load(rows), tl.load(weights), found, input_precision="ieee")
            rows += DEPTH
            weights += DEPTH * input_stride
        if factors is not None:
            found *= tl.load(factors + visit).to(tl.float32)[:, None]
        to = out + row.to(tl.int64)[:, None] * OUTPUT + column[None, :]
        tl.store(to, found.to(out.dtype.element_ty), mask=(row < end)[:, None])


@triton.jit
def activation_gradient_kernel(
    projected,  # [V, 2 * INNER], gates first
    back,  # [V, INNER] gradient of the activation, before the factor
    factors,  # [V]
    by_projection,  # [V, 2 * INNER]
    weighted,  # [V, INNER]: factor * silu(gate) * up, for the gradient of the down projection
    by_factor,  # [V] float32
    num_visits,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One program per few rows: back through the factor and the activation, which is computed anew."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = (row < num_visits)[:, None]
    kind = projected.dtype.element_ty
    factor = tl.load(factors + row, mask=row < num_visits, other=0.0).to(tl.float32)[:, None]
    line, total = row.to(tl.int64)[:, None], tl.zeros([ROWS], tl.float32)
    for start in range(0, INNER, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        gate = tl.load(projected + line * (2 * INNER) + column, mask=there, other=0.0).to(tl.float32)
        up = tl.load(projected + line * (2 * INNER) + INNER + column, mask=there, other=0.0).to(tl.float32)
        slope = tl.load(back + line * INNER + column, mask=there, other=0.0).to(tl.float32)
        sigmoid = _sigmoid(gate)
        silu = gate * sigmoid
        activated = (silu * up).to(kind).to(tl.float32)
        total += tl.sum(slope * activated, 1)
        tl.store(weighted + line * INNER + column, (activated * factor).to(kind), mask=there)
        slope *= factor
        by_gate = slope * up * (sigmoid + silu * (1.0 - sigmoid))
        tl.store(by_projection + line * (2 * INNER) + column, by_gate.to(kind), mask=there)
        tl.store(by_projection + line * (2 * INNER) + INNER + column, (slope * silu).to(kind), mask=there)
    tl.store(by_factor + row, total, mask=row < num_visits)


@triton.jit
def matrix_gradient_kernel(
    left,  # rows of LEFT numbers
    left_rows,  # [V] the row of each visit, or None: its own
    right,  # rows of RIGHT numbers
    right_rows,  # [V] or None
    starts,  # [E + 1] int32
    out,  # [E, LEFT, RIGHT]
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
) -> None:
    """One program per expert and tile of its matrix: the sum over its visits of left times right."""
    column_tiles: tl.constexpr = RIGHT // COLUMNS
    expert, tile = tl.program_id(1), tl.program_id(0)
    row = tile // column_tiles * ROWS + tl.arange(0, ROWS)
    column = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    begin, end = tl.load(starts + expert), tl.load(starts + expert + 1)
    found = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(begin, end, DEPTH):
        visit = start + tl.arange(0, DEPTH)
        there = visit < end
        visit = tl.minimum(visit, end - 1)
        left_row = visit.to(tl.int64) if left_rows is None else tl.load(left_rows + visit).to(tl.int64)
        right_row = visit.to(tl.int64) if right_rows is None else tl.load(right_rows + visit).to(tl.int64)
        x = tl.load(left + left_row[:, None] * LEFT + row[None, :], mask=there[:, None], other=0.0)
        y = tl.load(right + right_row[:, None] * RIGHT + column[None, :], mask=there[:, None], other=0.0)
        found = tl.dot(tl.trans(x), y, found, input_precision="ieee")
    to = out + expert.to(tl.int64) * (LEFT * RIGHT) + row[:, None] * RIGHT + column[None, :]
    tl.store(to, found.to(out.dtype.element_ty))


@triton.jit
def combine_kernel(
    rows,  # [V, WIDTH]
    places,  # [T, CHOICES] int32: the visit of each choice, -1 for none
    out,  # [T, WIDTH]
    CHOICES: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """One program per token and tile of its width: what its visits made, added in the order of its choices."""
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    found = tl.zeros([COLUMNS], tl.float32)
    for choice in range(CHOICES):
        place = tl.load(places + token * CHOICES + choice).to(tl.int64)
        if place >= 0:
            found += tl.load(rows + place * WIDTH + column).to(tl.float32)
    tl.store(out + token * WIDTH + column, found.to(out.dtype.element_ty))
