"""Packed sequences of similar length side by side, for operations that need a rectangle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from keyekit.batch import Segments

__all__ = ["PaddedGroup", "PaddedPlan", "padded_plan", "query_positions", "repeated_last", "similar"]

_PADDING = 1.25
"""Sequences share a group when the longest is at most this much longer than the shortest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedGroup:
    """Sequences that one padded tensor holds.

    Args:
        rows: ``[N, queries]`` int64 packed rows of the queries, padded by repeating the last.
        columns: ``[N, keys]`` int64 packed rows of the keys, likewise.
        valid: int64, which of the ``N * queries`` results are real.
    """

    rows: Tensor
    columns: Tensor
    valid: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedPlan:
    """All sequences of a pack in groups.

    Args:
        groups: The groups.
        order: ``[T]`` int64, brings the groups' results into packed order; ``None`` if they are.
    """

    groups: tuple[PaddedGroup, ...]
    order: Tensor | None

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Results ``[N, queries, …]`` of all groups as packed rows ``[T, …]``."""
        real = [part.flatten(0, 1)[group.valid] for part, group in zip(parts, self.groups, strict=True)]
        packed = torch.cat(real)
        return packed if self.order is None else packed[self.order]


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # a plan made while evaluating is used in training too
def padded_plan(lengths: tuple[int, ...], key_lengths: tuple[int, ...], device: str) -> PaddedPlan:
    """Group the sequences that have queries.

    Args:
        lengths: Queries of each sequence.
        key_lengths: Keys of each sequence; zero where there are none (yet) of a kind.
        device: Where the indices go.
    """
    starts, key_starts = (0, *accumulate(lengths)), (0, *accumulate(key_lengths))
    groups, written = [], []
    for members in similar(list(zip(lengths, key_lengths, strict=True))):
        rows, valid = repeated_last([starts[m] for m in members], [lengths[m] for m in members])
        columns, _ = repeated_last([key_starts[m] for m in members], [key_lengths[m] for m in members])
        written.append(rows.flatten()[valid])
        groups.append(PaddedGroup(rows=rows.to(device), columns=columns.to(device), valid=valid.to(device)))
    packed = torch.cat(written) if written else torch.zeros(0, dtype=torch.int64)
    in_order = bool((packed[1:] > packed[:-1]).all())
    return PaddedPlan(groups=tuple(groups), order=None if in_order else packed.argsort().to(device))


def repeated_last(starts: Sequence[int], counts: Sequence[int], width: int | None = None) -> tuple[Tensor, Tensor]:
    """Rows of runs side by side ``[N, width]``, each padded by repeating its last, and which of them are real.

    Args:
        starts: First packed row of each run.
        counts: Rows of each run; an empty run repeats its start.
        width: Columns; the longest run by default.

    Example:
        >>> [part.tolist() for part in repeated_last([0, 3], [3, 1])]
        [[[0, 1, 2], [3, 3, 3]], [0, 1, 2, 3]]
    """
    column = torch.arange(max(counts) if width is None else width)[None]
    count = torch.tensor(counts)[:, None]
    rows = torch.tensor(starts)[:, None] + column.minimum((count - 1).clamp(min=0))
    return rows, (column < count).flatten().nonzero().flatten()


def similar(sizes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Group what differs little in all its sizes, the smallest first; what has none of the first size is left out.

    Example:
        >>> similar([(40, 40), (0, 9), (41, 41), (3, 100)])
        [[3], [0, 2]]
    """
    groups: list[list[int]] = []
    for index in sorted((i for i, size in enumerate(sizes) if size[0]), key=lambda i: sizes[i]):
        smallest = sizes[groups[-1][0]] if groups else (-9,) * len(sizes[index])  # nothing is that near to nothing
        if all(size <= _PADDING * least + 8 for size, least in zip(sizes[index], smallest, strict=True)):
            groups[-1].append(index)
        else:
            groups.append([index])
    return [sorted(group) for group in groups]


def query_positions(segments: Segments) -> tuple[Tensor, Tensor]:
    """Sequence ``[T]`` and place in it ``[T]`` of every packed query, worked out on the device."""
    offsets, key_offsets = segments.offsets.long(), segments.key_offsets.long()
    sequences = torch.arange(len(segments), device=offsets.device)
    owner = torch.repeat_interleave(sequences, offsets.diff(), output_size=segments.total)
    earlier = key_offsets.diff() - offsets.diff() - offsets[:-1]
    return owner, torch.arange(segments.total, device=offsets.device) + earlier[owner]
