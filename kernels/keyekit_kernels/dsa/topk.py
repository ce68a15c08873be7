"""Exact, deterministic top-k of indexer scores in Triton, by sub-blocks.

Order keys by score (descending), then by index (ascending), and sub-blocks of keys by their maximum in the same way. Then
*the best k keys lie in the best k sub-blocks*: the sub-blocks that precede the one of a selected key each hold a key that
precedes it (their maximum is larger, or equal at a lower index), so k or more of them would leave it no place.

The fast path *bounds*, *collects* and *selects*. A number that k maxima or a few more reach is reached by k keys at least:
no key below it is selected. A loose bound is found in few steps. The sub-blocks that reach it are read, the keys in them that
reach it are collected, usually hardly more than k, and the exact top-k of these is taken in registers.

Rows with too many such keys, tied or crowded in few sub-blocks, are left to the thorough path: the exact top-k of the maxima,
then that of the k sub-blocks they point to. There is nothing to overflow. Every step emits in ascending order, so nothing is
sorted.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyekit_kernels.dsa.launch import call, next_power_of_two
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

__all__ = ["SUB_BLOCK", "block_maxima", "select_topk", "sub_block_of", "topk_warps"]


_NO_BOUND = tl.constexpr(LOWEST + GRAIN)
"""What every key reaches."""
_LARGEST_BLOCK = 32768
"""Numbers one program can hold in registers; also what the packed counts of ``exact_places`` can count."""
_LARGEST_LEVEL = 16384
"""Maxima of a row beyond which a further level of maxima comes first."""
_BOUND = {"num_warps": 8, "maxnreg": 80}
_BOUND_MANY = {"num_warps": 16, "maxnreg": 64}
"""Launches of the bound for up to 8192 maxima, and for more."""
_COLLECT = {"num_warps": 8, "maxnreg": 80}
"""Three programs fit on a multiprocessor, which is worth more than what spills."""
_FEW = {"num_warps": 16}
"""Launch of the bound and of the selection for few rows, whose programs have a multiprocessor for themselves."""
_FEW_ROWS = 132
"""Rows that leave multiprocessors idle: several programs collect the keys of each."""
_SLICES = 8
"""Programs that collect the keys of one of few rows."""
_COLLECTED = 2048
"""Scores of sub-blocks that a program looks at in one step."""
_PROGRAMS = 264
"""Programs that look for rows the fast path left out: two for each multiprocessor of an H100 or H200."""
_LINE = tl.constexpr(8)
"""Maxima whose places are counted together."""
SUB_BLOCK = 8
"""Keys per maximum where one size serves all lengths: 128K keys have 16384 maxima, as many as 2048 sub-blocks have keys."""


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
            upper = tl.reshape(halves >= bound, [half // _LINE, _LINE])
            lower = tl.reshape((halves << 16) >= bound, [half // _LINE, _LINE])
            place, later = places_of_halves(upper, lower)
            group = tl.arange(0, half // _LINE)[:, None] * _LINE + tl.arange(0, _LINE)[None, :]
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


@torch.no_grad()
def select_topk(
    scores: Tensor,
    maxima: Tensor,
    visible: Tensor,
    topk: int,
    *,
    first_key: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Choose the best keys of each row; equals :func:`keyekit_kernels.dsa.reference.select_topk`.

    Args:
        scores: ``[R, width]`` float32 contiguous. Columns that a row does not see are never used.
        maxima: ``[R, width / sub_block]`` float32 contiguous: for every sub-block the maximum over its *visible* keys, as
            :func:`~keyekit_kernels.dsa.indexer.index_logits` and :func:`block_maxima` give them.
        visible: ``[R]`` int32 leading keys that each row may use, at most ``width`` unless it is at most ``topk``: such rows
            take all their keys and no score of theirs is read.
        topk: Keys to select.
        first_key: ``[R]`` int32 added to the indices of each row.
        out: ``[R, topk]`` int32 contiguous.

    Returns:
        ``[R, topk]`` int32, ascending, -1 tail.

    Raises:
        ValueError: If an argument does not fit, or a row is too long for one program.
    """
    _check_scores(scores, visible, topk)
    sub_block = scores.shape[1] // maxima.shape[1] if maxima.shape[1] else 1
    if maxima.shape[1] * sub_block != scores.shape[1] or sub_block & (sub_block - 1) or not maxima.is_contiguous():
        raise ValueError(
            f"maxima is {list(maxima.shape)} and scores {list(scores.shape)}: contiguous [R, width / sub_block] with "
            "sub_block a power of two is needed"
        )
    chosen, groups = next_power_of_two(max(topk, 1)), next_power_of_two(max(maxima.shape[1], 1))
    nested = groups > max(_LARGEST_LEVEL, chosen)
    groups = groups // sub_block if nested else groups
    if max(chosen * sub_block, groups) > _LARGEST_BLOCK:
        raise ValueError(
            f"topk={topk} of {scores.shape[1]} scores in sub-blocks of {sub_block}: topk * sub_block and "
            f"width / sub_block ** 2, each rounded up to a power of two, must not exceed {_LARGEST_BLOCK}"
        )
    out = visible.new_empty(scores.shape[0], topk) if out is None else out
    if out.numel():
        numbers = None
        if not nested and groups > max(chosen, _LINE.value):
            numbers = _collect(scores, maxima, visible, first_key, out, sub_block)
            if numbers is None:
                return out
        rows = scores.shape[0]
        topk_rows_kernel[(rows if numbers is None else min(rows, _PROGRAMS),)](
            scores,
            maxima,
            visible,
            first_key,
            numbers,
            out,
            scores.shape[1],
            topk,
            rows,
            GROUPS=groups,
            CHOSEN=chosen,
            SUB=sub_block,
            NESTED=nested,
            num_warps=topk_warps(max(chosen * sub_block, groups)),  # pyright: ignore[reportCallIssue]
        )
    return out


def _collect(
    scores: Tensor, maxima: Tensor, visible: Tensor, first_key: Tensor | None, out: Tensor, sub_block: int
) -> Tensor | None:
    """The fast path; returns ``[R]`` int32, -1 for the rows that it left out, or None if there are none."""
    rows, topk = out.shape
    limit, groups = 2 * next_power_of_two(topk), next_power_of_two(maxima.shape[1])
    chosen = visible.new_empty(rows, limit)
    numbers, bounds = visible.new_empty(rows), visible.new_empty(rows, 2)
    lists, sizes, shape = (chosen, numbers, bounds), (scores.shape[1], topk), {"SUB": sub_block, "LIMIT": limit}
    if rows <= _FEW_ROWS:
        options = {"GROUPS": groups, **shape, **_FEW}
        call(bound_kernel, (rows,), maxima, visible, *lists, *sizes, **options)
        _collect_in_slices(scores, maxima, visible, first_key, *lists, out, limit)
        return None
    options = {"GROUPS": groups, **shape, **(_BOUND if groups <= 8192 else _BOUND_MANY)}
    call(bound_kernel, (rows,), maxima, visible, *lists, *sizes, **options)
    kept = visible.new_empty(rows, limit, dtype=torch.int64)
    options = {**shape, "CHUNK": min(_COLLECTED // sub_block, limit), **_COLLECT}
    call(collect_kernel, (rows,), scores, visible, first_key, *lists, kept, out, *sizes, **options)
    return numbers


def _collect_in_slices(
    scores: Tensor,
    maxima: Tensor,
    visible: Tensor,
    first_key: Tensor | None,
    groups: Tensor,
    numbers: Tensor,
    bounds: Tensor,
    out: Tensor,
    limit: int,
) -> None:
    """Collect with several programs a row, then select with one."""
    (rows, topk), sub_block = out.shape, scores.shape[1] // maxima.shape[1]
    room, share = max(4 * limit // _SLICES, 1), max(limit // _SLICES, 1)
    kept, counts = visible.new_empty(rows, _SLICES, room, dtype=torch.int64), visible.new_empty(rows, _SLICES)
    lists, sizes = (numbers, bounds, kept, counts), (scores.shape[1], topk)
    options = {"SUB": sub_block, "LIMIT": limit, "ROOM": room, "SLICE": share}
    call(collect_slices_kernel, (rows, _SLICES), scores, visible, groups, *lists, *sizes, **options)
    shape = {"GROUPS": next_power_of_two(maxima.shape[1]), "CHOSEN": limit // 2, "SUB": sub_block}
    options = {"SLICES": _SLICES, "ROOM": room, "USUAL": min(room, 4), **shape, **_FEW}
    call(select_slices_kernel, (rows,), scores, maxima, visible, first_key, *lists, out, *sizes, **options)


def block_maxima(scores: Tensor, visible: Tensor, sub_block: int = SUB_BLOCK) -> Tensor:
    """Maxima of the visible scores of every sub-block, in PyTorch, for scores that came without them.

    Args:
        scores: ``[R, width]`` with ``width`` a multiple of ``sub_block``.
        visible: ``[R]``.
        sub_block: Keys per maximum.

    Returns:
        ``[R, width / sub_block]``; NaN counts as minus infinity.
    """
    hidden = torch.arange(scores.shape[1], device=scores.device) >= visible[:, None]
    return scores.masked_fill(hidden | scores.isnan(), -torch.inf).unflatten(1, (-1, sub_block)).amax(2)


def sub_block_of(width: int) -> int:
    """Keys per maximum for rows of so many scores: about 8192 maxima, and no more than one program can hold.

    Example:
        >>> [sub_block_of(keys * 1024) for keys in (4, 16, 32, 64, 128, 256, 512)]
        [2, 2, 4, 8, 8, 16, 16]
    """
    wanted = min(max(next_power_of_two(max(width, 1)) // 8192, 2), SUB_BLOCK)
    return min(max(wanted, next_power_of_two(max(width, 1)) // _LARGEST_LEVEL), 2 * SUB_BLOCK)


def topk_warps(numbers: int) -> int:
    """Warps of a program that holds so many numbers in registers: 32 a thread, 64 for the largest."""
    return min(max(numbers // 1024, 4), 16)


def _check_scores(scores: Tensor, visible: Tensor, topk: int) -> None:
    """Refuse scores and lengths that the kernels cannot take."""
    if scores.ndim != 2 or scores.dtype != torch.float32 or not scores.is_contiguous():
        raise ValueError(f"scores is {list(scores.shape)} {scores.dtype}: contiguous float32 [R, width] is needed")
    if visible.shape != scores.shape[:1] or visible.dtype != torch.int32 or not visible.is_contiguous():
        raise ValueError(f"visible is {list(visible.shape)} {visible.dtype}: contiguous int32 [R] is needed")
    if topk < 0:
        raise ValueError(f"topk={topk}: a number of keys is needed")
