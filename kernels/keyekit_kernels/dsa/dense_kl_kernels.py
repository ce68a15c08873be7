"""Triton kernels of the dense divergence, one for each thing that is summed over something else.

A chunk of queries is scored first. The scores stay, four bytes a pair, and with them a bit for each pair and indexer head:
whether the head's product was above zero. Those bits are all that the gradients need of the products, so nothing multiplies
them again. Every sum belongs to one program, which adds in its own order: results are the same bits in every run.

All four walk over the same tiles of queries and keys. They pass over those that no query sees or whose queries weigh nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from keyekit_kernels.dsa.attention_tiles import EMPTY, LOG2E
from keyekit_kernels.dsa.kl import RAISE, TINY, divergence_tile

__all__ = ["BITS", "key_gradient_kernel", "query_gradient_kernel", "score_kernel", "target_kernel"]

BITS = tl.constexpr(16)
"""Heads of a word of bits."""


@triton.jit
def _seen_rows(row_weight, tile, start, row) -> tuple:
    """Of a tile: its first query, first key and visible keys, its rows with the last one repeated, and how many keys to visit.

    None are left where every query weighs nothing.
    """
    first, size = tl.load(tile).to(tl.int64), tl.load(tile + 1)
    key_start, visible = tl.load(tile + 2).to(tl.int64), tl.load(tile + 3)
    weight = tl.load(row_weight + first + row, mask=row < size, other=0.0)
    bound = tl.where(tl.max((weight != 0.0).to(tl.int32), 0) == 0, 0, visible + size - 1)
    return first, key_start, visible, weight, tl.minimum(row, size - 1), size, bound


@triton.jit
def score_kernel(
    index_query,  # [T, HEADS, WIDTH]
    index_key,  # [S, WIDTH]
    gate,  # [T, HEADS]
    row_weight,  # [T] float32
    tiles,  # [tiles, 4] int32: first query, queries, first key, keys that the first query sees
    scores,  # [rows, stride] float32
    active,  # [rows, words, stride] int16, or None
    normalisers,  # [rows, stride / BLOCK] float32
    first_row,
    stride,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per tile of keys and of queries: scores, their log-sum-exp over the tile, and which heads were active."""
    start, tile = tl.program_id(0) * BLOCK, tiles + tl.program_id(1) * 4
    row, column, channel = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    first, key_start, visible, _, rows, size, bound = _seen_rows(row_weight, tile, start, row)
    if start < bound:
        words: tl.constexpr = (HEADS + BITS - 1) // BITS
        index_query += first * (HEADS * WIDTH)
        gate += first * HEADS
        line = first.to(tl.int32) - first_row + row
        place = key_start + tl.minimum(start + column, bound - 1)
        # Turned here, or every head would write the tile to shared memory anew (Triton 3.9).
        k = tl.trans(tl.load(index_key + place[:, None] * WIDTH + channel))
        found = tl.zeros([QUERIES, BLOCK], tl.float32)
        for word in tl.static_range(words):  # pyright: ignore[reportGeneralTypeIssues]
            bits, bit = tl.zeros([QUERIES, BLOCK], tl.int32), tl.full([], 1, tl.int32)
            for head in range(word * BITS, min(word * BITS + BITS, HEADS)):
                at = rows * HEADS + head
                q = tl.load(index_query + at[:, None] * WIDTH + channel)
                gates = tl.load(gate + at).to(tl.float32) * SCALE
                products = tl.dot(q, k, input_precision="ieee")
                found += tl.maximum(products, 0.0, propagate_nan=tl.PropagateNan.ALL) * gates[:, None]
                if active is not None:
                    bits += tl.where(products > 0.0, bit, 0)
                    bit += bit
            if active is not None:
                to = (line * words + word)[:, None] * stride + start + column
                tl.store(active + to, bits.to(tl.int16), mask=(row < size)[:, None])
        tl.store(scores + line[:, None] * stride + start + column, found, mask=(row < size)[:, None])
        seen = start + column[None, :] < visible + row[:, None]
        found = tl.where(seen, found, EMPTY)
        peak = tl.max(found, 1)
        total = tl.sum(tl.where(seen, tl.exp(found - peak[:, None]), 0.0), 1)  # pyright: ignore
        normaliser = tl.where(
            total == 0.0, EMPTY, peak + tl.log(tl.maximum(total, TINY, propagate_nan=tl.PropagateNan.ALL))
        )
        tl.store(normalisers + line * (stride // BLOCK) + start // BLOCK, normaliser, mask=row < size)


@triton.jit
def target_kernel(
    query,  # [T, H, WIDTH]
    key,  # [S, GROUPS, WIDTH]
    lse,  # [T, H] float32
    row_weight,  # [T] float32
    tiles,  # [tiles, 4] int32
    scores,  # [rows, stride] float32
    normaliser,  # [rows] float32
    differences,  # [rows, stride], or None
    losses,  # [rows, stride / BLOCK] float32, zero before
    scale,  # times log2(e)
    first_row,
    stride,
    PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per tile of keys and of queries: the mean attention of all heads, and how the indexer's differs from it."""
    start, tile = tl.program_id(0) * BLOCK, tiles + tl.program_id(1) * 4
    row, column, channel = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    first, key_start, visible, weight, rows, size, bound = _seen_rows(row_weight, tile, start, row)
    if start < bound:
        heads: tl.constexpr = GROUPS * PER_GROUP
        query += first * (heads * WIDTH)
        lse += first * heads
        key += key_start * (GROUPS * WIDTH)
        place = tl.minimum(start + column, bound - 1).to(tl.int64) * (GROUPS * WIDTH)
        target = tl.zeros([QUERIES, BLOCK], tl.float32)
        for group in range(GROUPS):
            k = tl.trans(tl.load(key + (place + group * WIDTH)[:, None] + channel))
            for member in range(PER_GROUP):
                at = rows * heads + group * PER_GROUP + member
                q = tl.load(query + at[:, None] * WIDTH + channel)
                row_lse = tl.load(lse + at) * LOG2E
                target += tl.exp2(tl.dot(q, k, input_precision="ieee") * scale - row_lse[:, None])
        line = first.to(tl.int32) - first_row + rows
        found = tl.load(scores + line[:, None] * stride + start + column)
        allowed = (start + column[None, :] < visible + row[:, None]) & (weight != 0.0)[:, None]
        log_normaliser = tl.load(normaliser + line)
        terms, difference = divergence_tile(target / heads, found, log_normaliser[:, None], allowed)
        tl.store(losses + line * (stride // BLOCK) + start // BLOCK, tl.sum(terms, 1), mask=row < size)
        if differences is not None:
            to = differences + line[:, None] * stride + start + column
            tl.store(to, (difference * RAISE).to(differences.dtype.element_ty), mask=(row < size)[:, None])


@triton.jit
def _masked(differences, bits, head):
    """Differences where the head of a word was active."""
    return tl.where(((bits >> head) & 1) != 0, differences, 0.0)


@triton.jit
def query_gradient_kernel(
    index_query,  # [T, HEADS, WIDTH]
    index_key,  # [S, WIDTH]
    gate,  # [T, HEADS]
    row_weight,  # [T] float32
    tiles,  # [tiles, 4] int32
    differences,  # [rows, stride]
    active,  # [rows, words, stride] int16
    by_query,  # [splits, rows, HEADS, WIDTH] float32
    by_gate,  # [splits, rows, HEADS] float32
    first_row,
    num_rows,
    stride,
    span,  # keys of a split, a multiple of BLOCK
    HEADS: tl.constexpr,
    SHARED: tl.constexpr,  # heads of a program, 1, 2 or 4
    WIDTH: tl.constexpr,
    SCALE: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per tile of queries, few heads and span of keys."""
    tile, head = tiles + tl.program_id(0) * 4, tl.program_id(1) * SHARED
    begin = tl.program_id(2) * span
    row, column, channel = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    first, key_start, _, weight, rows, size, bound = _seen_rows(row_weight, tile, begin, row)
    words: tl.constexpr = (HEADS + BITS - 1) // BITS
    local = first.to(tl.int32) - first_row
    index_key += key_start * WIDTH
    differences += local.to(tl.int64) * stride
    active += (local * words + head // BITS).to(tl.int64) * stride
    sums = (tl.zeros([QUERIES, WIDTH], tl.float32),) * SHARED
    for start in range(begin, tl.minimum(begin + span, bound), BLOCK):
        k = tl.load(index_key + tl.minimum(start + column, bound - 1)[:, None] * WIDTH + channel)
        apart = tl.load(differences + rows[:, None] * stride + start + column)
        bits = tl.load(active + (rows * words)[:, None] * stride + start + column).to(tl.int32)
        sums = _add_products(sums, apart, bits, head % BITS, k, SHARED)
    factor = weight * (SCALE / RAISE)
    to = (tl.program_id(2) * num_rows + local + row).to(tl.int64) * HEADS
    for member in tl.static_range(SHARED):  # pyright: ignore[reportGeneralTypeIssues]
        at = (first + rows) * HEADS + head + member
        q = tl.load(index_query + at[:, None] * WIDTH + channel).to(tl.float32)
        gates = tl.load(gate + at).to(tl.float32)
        there = row < size
        real = weight != 0.0
        summed = tl.where(real[:, None], sums[member], 0.0)
        of_gate = tl.where(real, tl.sum(summed * q, 1) * factor, 0.0)
        of_query = tl.where(real[:, None], summed * (factor * gates)[:, None], 0.0)
        tl.store(by_gate + to + head + member, of_gate, mask=there)
        tl.store(by_query + (to + head + member)[:, None] * WIDTH + channel, of_query, mask=there[:, None])


@triton.jit
def _add_products(sums, apart, bits, head, k, SHARED: tl.constexpr) -> tuple:
    """Add the product of each head's differences with the keys to its sum."""
    first = tl.dot(_masked(apart, bits, head), k, sums[0], input_precision="ieee")
    if SHARED == 1:
        added = (first,)
    else:
        second = tl.dot(_masked(apart, bits, head + 1), k, sums[1], input_precision="ieee")
        if SHARED == 2:
            added = (first, second)
        else:
            third = tl.dot(_masked(apart, bits, head + 2), k, sums[2], input_precision="ieee")
            added = (first, second, third, tl.dot(_masked(apart, bits, head + 3), k, sums[3], input_precision="ieee"))
    return added


@triton.jit
def key_gradient_kernel(
    gated,  # [rows, HEADS, WIDTH]: queries of the indexer times gate and weight, zero where they do not count
    row_weight,  # [T] float32
    sequences,  # [sequences, 4] int32: like tiles, each all queries of one sequence in the chunk
    differences,  # [rows, stride]
    active,  # [rows, words, stride] int16
    by_key,  # [S, WIDTH] float32, added to
    first_row,
    stride,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per tile of keys and sequence, over the queries that see them."""
    start, sequence = tl.program_id(0) * BLOCK, sequences + tl.program_id(1) * 4
    first, count = tl.load(sequence).to(tl.int64), tl.load(sequence + 1)
    key_start, visible = tl.load(sequence + 2).to(tl.int64), tl.load(sequence + 3)
    row, column, channel = tl.arange(0, QUERIES), tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    bound = visible + count - 1
    if start < bound:
        words: tl.constexpr = (HEADS + BITS - 1) // BITS
        local = (first.to(tl.int32) - first_row).to(tl.int64)
        gated += local * (HEADS * WIDTH)
        differences += local * stride + start
        active += local * words * stride + start
        row_weight += first
        summed = tl.zeros([BLOCK, WIDTH], tl.float32)
        for begin in range(tl.maximum(start + 1 - visible, 0) // QUERIES * QUERIES, count, QUERIES):
            there = begin + row < count
            weight = tl.load(row_weight + begin + row, mask=there, other=0.0)
            if tl.max((weight != 0.0).to(tl.int32), 0) != 0:
                rows = tl.minimum(begin + row, count - 1)
                apart = tl.load(differences + (rows * stride)[None, :] + column[:, None])
                for word in tl.static_range(words):  # pyright: ignore[reportGeneralTypeIssues]
                    bits = tl.load(active + ((rows * words + word) * stride)[None, :] + column[:, None]).to(tl.int32)
                    for head in range(word * BITS, min(word * BITS + BITS, HEADS)):
                        at = rows * HEADS + head
                        q = tl.load(gated + at[:, None] * WIDTH + channel, mask=there[:, None], other=0.0)
                        summed = tl.dot(_masked(apart, bits, head - word * BITS), q, summed, input_precision="ieee")
        to = by_key + (key_start + start + column)[:, None] * WIDTH + channel
        inside = (start + column < bound)[:, None]
        tl.store(to, tl.load(to, mask=inside, other=0.0) + summed, mask=inside)
