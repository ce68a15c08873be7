"""Kernels of the top-k: bound, collect and select, for many rows and for few; and the thorough path.

What they do and why it is right stands in :mod:`keyekit_kernels.dsa.topk`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from keyekit_kernels.dsa.topk_registers import (
    GRAIN,
    LOWEST,
    exact_places,
    exact_threshold,
    in_one,
    inside,
    ordered,
    places_of_halves,
    places_of_lines,
    search,
    span,
    span_of_halves,
    take_all,
    take_best,
)

__all__ = [
    "LINE",
    "bound_kernel",
    "collect_kernel",
    "collect_slices_kernel",
    "select_slices_kernel",
    "topk_rows_kernel",
]

_NO_BOUND = tl.constexpr(LOWEST + GRAIN)
"""What every key reaches."""
LINE = tl.constexpr(8)
"""Maxima whose places are counted together."""


@triton.jit
def _origin(first_key, row) -> tl.tensor:
    """What is added to the indices of a row."""
    return tl.full([], 0, tl.int32) if first_key is None else tl.load(first_key + row)


@triton.jit
def bound_kernel(
    maxima,  # [rows, stride / SUB] float32
    visible,  # [rows] int32
    groups,  # [rows, LIMIT] int32
    numbers,  # [rows] int32
    bounds,  # [rows, 2] int32
    stride,
    width,
    GROUPS: tl.constexpr,
    SUB: tl.constexpr,
    LIMIT: tl.constexpr,
) -> None:
    """One program per row: sub-blocks that reach a bound, how many they are (-1: more than ``LIMIT``), bound and maximum."""
    row = tl.program_id(0).to(tl.int64)
    seen = tl.load(visible + row)
    if seen > width:
        half: tl.constexpr = GROUPS // 2
        blocks, index = (seen + SUB - 1) // SUB, tl.arange(0, half)
        maxima += row * (stride // SUB)
        halves = in_one(_peaks(maxima, index, blocks), _peaks(maxima, index + half, blocks))
        lowest, highest = span_of_halves(halves)
        bound, reach = tl.full([], _NO_BOUND, tl.int32), blocks
        if blocks > width:
            bound, _, reach = search(halves, width, width + width // 4, lowest, highest, blocks, 0.1, GRAIN)
        if reach <= LIMIT:
            upper = tl.reshape(halves >= bound, [half // LINE, LINE])
            lower = tl.reshape((halves << 16) >= bound, [half // LINE, LINE])
            place, later = places_of_halves(upper, lower)
            group = tl.arange(0, half // LINE)[:, None] * LINE + tl.arange(0, LINE)[None, :]
            groups += row * LIMIT
            tl.store(groups + place, group, mask=upper)
            tl.store(groups + later, group + half, mask=lower)
        tl.store(numbers + row, tl.where(reach <= LIMIT, reach, -1))
        tl.store(bounds + row * 2, bound)
        tl.store(bounds + row * 2 + 1, highest | (GRAIN - 1))


@triton.jit
def _peaks(maxima, index, blocks) -> tl.tensor:
    """The order of maxima, ``LOWEST`` where there are none."""
    there = index < blocks
    return tl.where(there, ordered(tl.load(maxima + index, mask=there, other=0.0)), LOWEST)


@triton.jit
def _listed(found, column) -> tl.tensor:
    """An entry of a list: the order of a score above its column."""
    return (ordered(found).to(tl.int64) << 32) | column


@triton.jit
def _select_listed(kept, there, number, bounds, origin, out, width) -> None:
    """Exact top-``width`` of a list of ``number`` keys, all from the bound to the maximum."""
    entry = tl.load(kept, mask=there, other=0)
    order, column = tl.where(there, (entry >> 32).to(tl.int32), LOWEST), entry.to(tl.int32)
    low, high = tl.load(bounds), tl.load(bounds + 1)
    if low == _NO_BOUND:
        low, high, number = span(order)
    threshold, ties = exact_threshold(order, width, low, high, number)
    chosen, place = exact_places(order, threshold, ties)
    tl.store(out + place, origin + column, mask=chosen)


@triton.jit
def collect_kernel(
    scores,  # [rows, stride] float32
    visible,  # [rows] int32
    first_key,  # [rows] int32 or None
    groups,  # [rows, LIMIT] int32
    numbers,  # [rows] int32
    bounds,  # [rows, 2] int32
    kept,  # [rows, LIMIT] int64
    out,  # [rows, width] int32
    stride,
    width,
    SUB: tl.constexpr,
    LIMIT: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """One program per row: collect the keys that reach the bound, select among them; ``numbers`` is -1 if they are too many."""
    row = tl.program_id(0).to(tl.int64)
    seen, origin = tl.load(visible + row), _origin(first_key, row)
    out += row * width
    if seen <= width:
        tl.store(numbers + row, 0)
        take_all(out, seen, origin, width, LIMIT)
    else:
        scores += row * stride
        kept += row * LIMIT
        bounds += row * 2
        number, bound = tl.load(numbers + row), tl.load(bounds)
        total = tl.full([], 0, tl.int32)
        # Loads run ahead of what is done with them.
        for start in tl.range(0, number, CHUNK, num_stages=3):  # pyright: ignore[reportGeneralTypeIssues]
            slot = start + tl.arange(0, CHUNK)
            block = tl.load(groups + row * LIMIT + slot, mask=slot < number, other=0)
            member = block[:, None] * SUB + tl.arange(0, SUB)[None, :]
            there = (slot < number)[:, None] & (member < seen)
            found = tl.load(scores + member, mask=there, other=0.0)
            reaches = there & (ordered(found) >= bound)
            place, count = places_of_lines(reaches.to(tl.int32))
            place += total
            tl.store(kept + place, _listed(found, member), mask=reaches & (place < LIMIT))
            total += count
        if (number < 0) | (total > LIMIT):
            tl.store(numbers + row, -1)
        else:
            tl.debug_barrier()  # everybody has written before the list is read
            slot = tl.arange(0, LIMIT)
            _select_listed(kept + slot, slot < total, total, bounds, origin, out, width)


@triton.jit
def collect_slices_kernel(
    scores,  # [rows, stride] float32
    visible,  # [rows] int32
    groups,  # [rows, LIMIT] int32
    numbers,  # [rows] int32
    bounds,  # [rows, 2] int32
    kept,  # [rows, slices, ROOM] int64
    counts,  # [rows, slices] int32
    stride,
    width,
    SUB: tl.constexpr,
    LIMIT: tl.constexpr,
    ROOM: tl.constexpr,
    SLICE: tl.constexpr,
) -> None:
    """One program per row and slice of its sub-blocks: what :func:`collect_kernel` collects, by many programs for few rows."""
    row, slices = tl.program_id(0).to(tl.int64), tl.num_programs(1)
    seen, number = tl.load(visible + row), tl.load(numbers + row)
    to, total = row * slices + tl.program_id(1), tl.full([], 0, tl.int32)
    if (seen > width) & (number > 0):
        share = (number + slices - 1) // slices
        slot = tl.arange(0, SLICE)
        real = (slot < share) & (tl.program_id(1) * share + slot < number)
        block = tl.load(groups + row * LIMIT + tl.program_id(1) * share + slot, mask=real, other=0)
        member = block[:, None] * SUB + tl.arange(0, SUB)[None, :]
        there = real[:, None] & (member < seen)
        found = tl.load(scores + row * stride + member, mask=there, other=0.0)
        reaches = there & (ordered(found) >= tl.load(bounds + row * 2))
        place, total = places_of_lines(reaches.to(tl.int32))
        tl.store(kept + to * ROOM + place, _listed(found, member), mask=reaches & (place < ROOM))
    tl.store(counts + to, total)


@triton.jit
def select_slices_kernel(
    scores,  # [rows, stride] float32
    maxima,  # [rows, stride / SUB] float32
    visible,  # [rows] int32
    first_key,  # [rows] int32 or None
    numbers,  # [rows] int32
    bounds,  # [rows, 2] int32
    kept,  # [rows, SLICES, ROOM] int64
    counts,  # [rows, SLICES] int32
    out,  # [rows, width] int32
    stride,
    width,
    SLICES: tl.constexpr,
    ROOM: tl.constexpr,
    USUAL: tl.constexpr,
    GROUPS: tl.constexpr,
    CHOSEN: tl.constexpr,
    SUB: tl.constexpr,
) -> None:
    """One program per row: select among what its slices hold, or thoroughly if that is not all.

    Slices are usually not filled to more than one part in ``USUAL``.
    """
    row = tl.program_id(0).to(tl.int64)
    seen, origin = tl.load(visible + row), _origin(first_key, row)
    out += row * width
    scores += row * stride
    if seen <= width:
        take_all(out, seen, origin, width, CHOSEN)
    else:
        kept += row * (SLICES * ROOM)
        bounds += row * 2
        filled = tl.load(counts + row * SLICES + tl.arange(0, SLICES))
        most, total = tl.max(filled, 0), tl.sum(filled, 0)
        counts += row * SLICES
        if (tl.load(numbers + row) < 0) | (most > ROOM):
            maxima += row * (stride // SUB)
            nested: tl.constexpr = False  # pyright: ignore[reportAssignmentType]
            _select_thoroughly(scores, maxima, seen, origin, out, width, GROUPS, CHOSEN, SUB, nested)
        elif most * USUAL <= ROOM:
            _select_slices(kept, counts, total, bounds, origin, out, width, SLICES, ROOM, ROOM // USUAL)
        else:
            _select_slices(kept, counts, total, bounds, origin, out, width, SLICES, ROOM, ROOM)


@triton.jit
def _select_slices(
    kept,
    counts,
    total,
    bounds,
    origin,
    out,
    width,
    SLICES: tl.constexpr,
    ROOM: tl.constexpr,
    MOST: tl.constexpr,
) -> None:
    """Exact top-``width`` of what slices hold, at most ``MOST`` of each."""
    slot = tl.arange(0, SLICES * MOST)
    there = slot % MOST < tl.load(counts + slot // MOST)
    _select_listed(kept + slot // MOST * ROOM + slot % MOST, there, total, bounds, origin, out, width)


@triton.jit
def topk_rows_kernel(
    scores,  # [rows, stride] float32
    maxima,  # [rows, stride / SUB] float32
    visible,  # [rows] int32
    first_key,  # [rows] int32 or None, added to every index
    numbers,  # [rows] int32 or None: the rows where it is -1 are all that is done
    out,  # [rows, width] int32
    stride,
    width,
    rows,
    GROUPS: tl.constexpr,  # sub-blocks of a row, or groups of SUB sub-blocks where NESTED, padded
    CHOSEN: tl.constexpr,  # width, padded
    SUB: tl.constexpr,
    NESTED: tl.constexpr,
) -> None:
    """The thorough path; every program takes rows at a distance, of which few are to be done where ``numbers`` are given."""
    for at in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.full([], 0, tl.int64) + at
        wanted = True
        if numbers is not None:
            wanted = tl.load(numbers + row) < 0
        if wanted:
            seen, origin = tl.load(visible + row), _origin(first_key, row)
            to = out + row * width
            if seen <= width:
                take_all(to, seen, origin, width, CHOSEN)
            else:
                own = scores + row * stride, maxima + row * (stride // SUB)
                _select_thoroughly(*own, seen, origin, to, width, GROUPS, CHOSEN, SUB, NESTED)


@triton.jit
def _select_thoroughly(
    scores,
    maxima,
    seen,
    origin,
    out,
    width,
    GROUPS: tl.constexpr,
    CHOSEN: tl.constexpr,
    SUB: tl.constexpr,
    NESTED: tl.constexpr,
) -> None:
    """Top-k of a row's maxima, then top-k of the sub-blocks they point to.

    Where a row has too many maxima for the registers, the same step comes first on the maxima of groups of maxima.
    """
    blocks = (seen + SUB - 1) // SUB
    slot = tl.arange(0, CHOSEN)
    block = slot
    if blocks > width:
        index = tl.arange(0, GROUPS)
        if NESTED:
            groups = (blocks + SUB - 1) // SUB
            group = slot
            if groups > width:
                peaks = tl.full([GROUPS], float("-inf"), tl.float32)
                for member in range(SUB):
                    place = index * SUB + member
                    peaks = tl.maximum(peaks, tl.load(maxima + place, mask=place < blocks, other=float("-inf")))
                group = take_best(tl.where(index < groups, ordered(peaks), LOWEST), index, out, slot, width)
            inner, there = inside(group, groups, slot, width, blocks, SUB, CHOSEN)
            peaks = tl.load(maxima + inner, mask=there, other=0.0)
            block = take_best(tl.where(there, ordered(peaks), LOWEST), inner, out, slot, width)
        else:
            peaks = tl.load(maxima + index, mask=index < blocks, other=0.0)
            block = take_best(tl.where(index < blocks, ordered(peaks), LOWEST), index, out, slot, width)
    column, there = inside(block, blocks, slot, width, seen, SUB, CHOSEN)
    found = tl.load(scores + column, mask=there, other=0.0)
    order = tl.where(there, ordered(found), LOWEST)
    low, high, number = span(order)
    threshold, ties = exact_threshold(order, width, low, high, number)
    chosen, place = exact_places(order, threshold, ties)
    tl.store(out + place, origin + column, mask=chosen)
