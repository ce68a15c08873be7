"""Keys and values of earlier tokens, kept per layer in buffers that every decoding step reads in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from keyekit.batch import Segments
from keyekit.nn.attention.base import CacheGroup, CacheStep

__all__ = ["SequenceCache"]

_RATIO, _SLACK = 1.5, 64
"""Sequences share a padded group when the longest has room for at most this many times, plus this many more, tokens."""


class SequenceCache:
    """Buffers made once for the final lengths of the sequences they serve; one cache per generation call.

    A layer stores what it needs by name: ``key`` and ``value``, and ``index_key`` for a sparse attention. Every sequence owns
    a run of consecutive rows. Sequences of similar capacity form a group with runs of equal length, so that a group is one
    padded view of the buffer: a decoding step writes one row per sequence and copies nothing else, and one very long
    sequence does not make the others pay for its length.

    Args:
        num_layers: Layers of the decoder.
        capacities: Most tokens each sequence will ever hold.
    """

    def __init__(self, num_layers: int, capacities: Sequence[int]) -> None:
        self.capacities = tuple(capacities)
        self.lengths = [0] * len(self.capacities)
        self._runs = _group(self.capacities)
        self._num_rows = sum(len(run.members) * run.capacity for run in self._runs)
        self._layers = [_LayerBuffers(self) for _ in range(num_layers)]
        self._step: CacheStep | None = None

    @classmethod
    def reserved(cls, num_layers: int, slots: int, capacity: int) -> SequenceCache:
        """A cache without sequences that has room for ``slots`` of them at a time, of ``capacity`` tokens each.

        Sequences come by :meth:`adopt` and go by :meth:`keep`; the room of those that went is given to others.
        """
        cache = cls(num_layers, [])
        cache._runs = [_Run(start=0, capacity=capacity, members=[], slots=slots)]
        cache._num_rows = slots * capacity
        return cache

    @property
    def num_rows(self) -> int:
        """Rows of every buffer: the tokens there is room for, padding included."""
        return self._num_rows

    @property
    def step(self) -> CacheStep:
        """The forward pass that :meth:`segments_for` began.

        Raises:
            RuntimeError: If none began.
        """
        if self._step is None:
            raise RuntimeError("call segments_for() before a forward pass: it decides where the new tokens go")
        return self._step

    def layer(self, index: int) -> _LayerBuffers:
        """The buffers of one layer."""
        return self._layers[index]

    def segments_for(self, new_lengths: Sequence[int], device: torch.device | str) -> Segments:
        """Begin a forward pass: segments of ``new_lengths`` queries whose keys include everything stored so far.

        Raises:
            ValueError: If a sequence would outgrow its capacity.
        """
        totals = [stored + new for stored, new in zip(self.lengths, new_lengths, strict=True)]
        if any(total > capacity for total, capacity in zip(totals, self.capacities, strict=True)):
            raise ValueError(f"sequences of {totals} tokens do not fit a cache made for {list(self.capacities)}")
        self._step = self._plan(new_lengths, totals, torch.device(device))
        return Segments.of(new_lengths, key_lengths=totals, device=device)

    def advance(self, new_lengths: Sequence[int]) -> None:
        """Count the tokens of a forward pass as stored; call it once after all layers ran."""
        self.lengths = [stored + new for stored, new in zip(self.lengths, new_lengths, strict=True)]

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop all sequences but these, in this order.

        Nothing moves but, for each dropped sequence, the rows of at most one other.

        Raises:
            ValueError: If a sequence is named twice.
        """
        renamed = {old: new for new, old in enumerate(sequences)}
        if len(renamed) != len(sequences):
            raise ValueError(f"every sequence can be kept once, got {list(sequences)}")
        for run in self._runs:
            kept = [slot for slot, member in enumerate(run.members) if member in renamed]
            holes = [slot for slot in range(len(kept)) if run.members[slot] not in renamed]
            for hole, slot in zip(holes, kept[len(kept) - len(holes) :], strict=True):
                self._move(run.start_of(slot), run.start_of(hole), self.lengths[run.members[slot]])
                run.members[hole] = run.members[slot]
            run.members = [renamed[member] for member in run.members[: len(kept)]]
        self._runs = [run for run in self._runs if run.members or run.slots]
        self.capacities = tuple(self.capacities[sequence] for sequence in sequences)
        self.lengths = [self.lengths[sequence] for sequence in sequences]
        self._step = None

    def adopt(self, other: SequenceCache, sequence: int) -> None:
        """Copy a sequence of another cache into free room; it becomes the last one.

        Args:
            other: Holds it.
            sequence: Its number there.

        Raises:
            ValueError: If there is no room for another sequence, or for one of that length.
        """
        run = next((run for run in self._runs if len(run.members) < run.slots), None)
        length = other.lengths[sequence]
        if run is None:
            raise ValueError(f"all slots hold a sequence ({len(self.lengths)}): let one go first")
        if length > run.capacity:
            raise ValueError(f"a sequence of {length} tokens does not fit a slot of {run.capacity}")
        source, target = other.starts()[sequence], run.start_of(len(run.members))
        for own, theirs in zip(self._layers, other._layers, strict=True):
            own.copy(theirs, source, target, length)
        run.members.append(len(self.lengths))
        self.lengths.append(length)
        self.capacities = (*self.capacities, run.capacity)
        self._step = None

    def starts(self) -> list[int]:
        """First row of each sequence in every buffer."""
        starts = [0] * len(self.lengths)
        for run in self._runs:
            for slot, member in enumerate(run.members):
                starts[member] = run.start_of(slot)
        return starts

    def _move(self, source: int, target: int, length: int) -> None:
        for layer in self._layers:
            layer.move(source, target, length)

    def _plan(self, new_lengths: Sequence[int], totals: Sequence[int], device: torch.device) -> CacheStep:
        first = [start + stored for start, stored in zip(self.starts(), self.lengths, strict=True)]
        if any(length != 1 for length in new_lengths):
            pieces = [torch.arange(row, row + new) for row, new in zip(first, new_lengths, strict=True)]
            rows = torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)
            return CacheStep(rows=rows.to(device), groups=(), order=None, inverse=None)
        order = [member for run in self._runs for member in run.members]
        in_order = order == list(range(len(order)))
        ordered = None if in_order else torch.tensor(order, device=device)
        return CacheStep(
            rows=torch.tensor(first, dtype=torch.int64, device=device),
            groups=tuple(
                run.view([totals[member] for member in run.members], device) for run in self._runs if run.members
            ),
            order=ordered,
            inverse=None if ordered is None else ordered.argsort(),
        )


class _LayerBuffers:
    """The named buffers of one layer, ``[…, rows, width]``: heads come before tokens, so that attention reads long runs."""

    def __init__(self, cache: SequenceCache) -> None:
        self._cache = cache
        self._buffers: dict[str, Tensor] = {}

    @property
    def step(self) -> CacheStep:
        """The forward pass under way."""
        return self._cache.step

    def append(self, name: str, new: Tensor) -> None:
        """Store ``new [T, …]`` behind what is stored under ``name``."""
        new = new.movedim(0, -2)
        self._buffer(name, new).index_copy_(new.ndim - 2, self.step.rows, new)

    def stored(self, name: str, group: CacheGroup) -> Tensor:
        """What is stored of a group's sequences, as a view ``[count, …, longest, width]``."""
        buffer = self._buffers[name]
        width = buffer.shape[-1]
        return buffer.as_strided(  # one call instead of the narrow, unflatten and movedim that it stands for
            (group.count, *buffer.shape[:-2], group.longest, width),
            (group.capacity * width, *buffer.stride()),
            group.start * width,
        )

    def extend(self, name: str, new: Tensor, segments: Segments) -> Tensor:
        """Append ``new [T, …]`` and return all stored rows, packed ``[S, …]``."""
        self.append(name, new)
        if segments.is_square:
            return new
        rows = self._buffers[name].movedim(-2, 0)
        starts = self._cache.starts()
        return torch.cat([rows[a : a + n] for a, n in zip(starts, segments.key_lengths, strict=True)])

    def copy(self, other: _LayerBuffers, source: int, target: int, length: int) -> None:
        """Copy ``length`` rows of another layer's buffers, from ``source`` there, to ``target`` here."""
        for name, theirs in other._buffers.items():
            self._buffer(name, theirs).narrow(-2, target, length).copy_(theirs.narrow(-2, source, length))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy ``length`` rows from ``source`` over those from ``target``."""
        for buffer in self._buffers.values():
            buffer.narrow(-2, target, length).copy_(buffer.narrow(-2, source, length))

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        """The buffer of this name, made for rows such as those of ``like [..., rows, width]`` if there is none."""
        if name not in self._buffers:
            # Zeros: what lies beyond a sequence's length is masked, but must not be NaN.
            self._buffers[name] = like.new_zeros(*like.shape[:-2], self._cache.num_rows, like.shape[-1])
        return self._buffers[name]


@dataclass(slots=True, kw_only=True)
class _Run:
    """A group: consecutive runs of rows of equal capacity, one per member sequence, and reserved ones up to ``slots``."""

    start: int
    capacity: int
    members: list[int]
    slots: int = 0

    def start_of(self, slot: int) -> int:
        return self.start + slot * self.capacity

    def view(self, lengths: Sequence[int], device: torch.device) -> CacheGroup:
        """The group as one decoding step sees it, with ``lengths`` rows in its slots."""
        longest = max(lengths)
        stored = torch.tensor(lengths, device=device)
        padded = any(length < longest for length in lengths)
        mask = torch.arange(longest, device=device) < stored[:, None] if padded else None
        return CacheGroup(
            start=self.start,
            capacity=self.capacity,
            count=len(lengths),
            lengths=stored,
            longest=longest,
            mask=mask,
        )


def _group(capacities: Sequence[int]) -> list[_Run]:
    """Put sequences of similar capacity together, the largest first."""
    runs: list[_Run] = []
    for sequence in sorted(range(len(capacities)), key=lambda sequence: -capacities[sequence]):
        last = runs[-1] if runs else None
        if last is not None and last.capacity <= _RATIO * capacities[sequence] + _SLACK:
            last.members.append(sequence)
            continue
        start = 0 if last is None else last.start_of(len(last.members))
        runs.append(_Run(start=start, capacity=capacities[sequence], members=[sequence]))
    return runs
