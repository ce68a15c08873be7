"""Sums by key in a fixed order, for gradients that are the same bits in every run.

Atomic additions arrive in any order, and floating-point sums depend on it. Instead the kernels write *partial rows*, one for
each (block of queries, key); a stable sort brings the rows of a key together in the order of the blocks, and one segmented
sum adds them. Blocks are taken in chunks, so that the rows of a chunk fit a budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["add_in_order", "cut_blocks"]

PARTIAL_BYTES = 512 * 2**20
"""Partial rows held at a time."""


def cut_blocks(starts: Sequence[int], row_bytes: int, budget: int | None = None) -> list[tuple[int, int]]:
    """Cut blocks of rows into ranges whose rows fit a budget together; a single block may exceed it.

    Args:
        starts: Where the rows of each block begin, and where the last one ends.
        row_bytes: Bytes of a row.
        budget: Bytes of a range; :data:`PARTIAL_BYTES` by default.

    Returns:
        First block of each range, and one past its last.

    Example:
        >>> cut_blocks([0, 3, 5, 9], row_bytes=1, budget=5)
        [(0, 2), (2, 3)]
    """
    rows = max((PARTIAL_BYTES if budget is None else budget) // row_bytes, 1)
    ranges, begin = [], 0
    for block in range(1, len(starts)):
        if starts[block] - starts[begin] > rows and block - 1 > begin:
            ranges.append((begin, block - 1))
            begin = block - 1
    if len(starts) > 1:
        ranges.append((begin, len(starts) - 1))
    return ranges


def add_in_order(total: Tensor, keys: Tensor, part: Tensor) -> None:
    """Add rows to those of ``total`` that they belong to, each key's rows in ascending order.

    Args:
        total: ``[S, …]``, changed in place.
        keys: ``[rows]`` int64 rows of ``total``; S for a row that belongs nowhere, whatever it holds.
        part: ``[rows, …]``.
    """
    order = keys.argsort(stable=True)
    lengths = torch.bincount(keys, minlength=total.shape[0] + 1)
    sums = torch.segment_reduce(part[order].flatten(1), "sum", lengths=lengths, axis=0, unsafe=True)
    total += sums[: total.shape[0]].view_as(total)
