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
from torch import Tensor

from keyekit_kernels.dsa.launch import call, next_power_of_two
from keyekit_kernels.dsa.topk_kernels import (
    LINE,
    bound_kernel,
    collect_kernel,
    collect_slices_kernel,
    select_slices_kernel,
    topk_rows_kernel,
)

__all__ = ["SUB_BLOCK", "block_maxima", "select_topk", "sub_block_of", "topk_warps"]


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
SUB_BLOCK = 8
"""Keys per maximum where one size serves all lengths: 128K keys have 16384 maxima, as many as 2048 sub-blocks have keys."""


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
        if not nested and groups > max(chosen, LINE.value):
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
