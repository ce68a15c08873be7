"""Filling packs from a stream of samples within budgets of tokens, patches and operations."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from keyekit.data.cost import SampleSize

__all__ = ["PackBudget", "Packer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackBudget:
    """What a pack may hold at most. Tokens decide its shape, patches the memory of the vision tower, operations its time.

    Args:
        tokens: Tokens.
        patches: Patches; ``None`` for no limit.
        flops: Estimated operations; ``None`` for no limit.
    """

    tokens: int
    patches: int | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        for name, limit in zip(_MEASURES, self.limits, strict=True):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}={limit}: a pack needs room for something; give a number above 0 or None")

    @property
    def limits(self) -> tuple[float | None, float | None, float | None]:
        """Limits of tokens, patches and operations."""
        return self.tokens, self.patches, self.flops

    @classmethod
    def alike(
        cls,
        sizes: Sequence[SampleSize],
        tokens: int,
        patches: int | None = None,
        slack: float = 0.02,
        alone: bool = False,
    ) -> PackBudget:
        """A budget under which full packs cost alike, whoever runs them.

        Args:
            sizes: Measures of all samples.
            tokens: Tokens of a pack.
            patches: Patches of a pack.
            slack: By how much a pack may be dearer than a full one is on average. Less makes packs more alike and fills them
                less.
            alone: Whether samples that are dearer than that will stand alone; otherwise the dearest one has to fit.

        Raises:
            ValueError: If the sizes hold no operations.
        """
        total = sum(size.flops for size in sizes)
        if not total > 0:
            raise ValueError("sizes hold no operations: measure the samples by a SampleCost of a network")
        limit = total / sum(size.tokens for size in sizes) * tokens * (1 + slack)
        if not alone:
            limit = max(limit, *(size.flops for size in sizes))
        return cls(tokens=tokens, patches=patches, flops=limit)

    def limited(self, size: SampleSize) -> tuple[float, ...]:
        """Those measures of a sample that a pack limits; samples that agree in them can take each other's places."""
        return tuple(number for number, limit in zip(size.measures, self.limits, strict=True) if limit is not None)

    def packs(self, sizes: np.ndarray) -> int:
        """Packs that samples fill; no fewer can hold them.

        Args:
            sizes: ``[samples, 3]``: tokens, patches and operations.
        """
        totals = zip(sizes.sum(axis=0).tolist(), self.limits, strict=True)
        return max(math.ceil(total / limit) for total, limit in totals if limit is not None)

    def excess(self, size: SampleSize) -> str | None:
        """In what a sample exceeds an empty pack, in words; ``None`` if it fits.

        Example:
            >>> PackBudget(tokens=8, patches=16).excess(SampleSize(tokens=4, patches=20))
            '20 patches, a pack holds 16'
        """
        for name, number, limit in zip(_MEASURES, size.measures, self.limits, strict=True):
            if limit is not None and number > limit:
                return f"{number:,.0f} {name}, a pack holds {limit:,.0f}"
        return None


_MEASURES = ("tokens", "patches", "flops")


class Packer:
    """Fills packs from a stream of samples, best fit over a bounded buffer. No sample is cut.

    When the buffer is full, one pack is made. It begins with the sample that waited longest, so none waits for more than
    ``buffer`` packs. Then comes, again and again, the waiting sample whose needs are most alike to what is left of the budgets
    (the angle between them), and of those equally alike the largest: with one budget that is best fit, with several all
    fill up together. At last one sample is exchanged for another if that leaves fewer tokens free, and, where tokens are the
    only budget, one for two. What comes out follows from what went in and in which order, so the waiting samples are all the
    state that there is.

    Args:
        budget: What a pack may hold.
        buffer: Samples that wait at most.
        alone: Whether a sample that exceeds the budget becomes a pack of its own; otherwise it is an error.
    """

    def __init__(self, budget: PackBudget, buffer: int = 512, alone: bool = False) -> None:
        if buffer < 1:
            raise ValueError(f"buffer={buffer}: at least one sample has to wait for a pack")
        self.budget = budget
        self.buffer = buffer
        self.alone = alone
        self._waiting: list[tuple[int, SampleSize]] = []
        self._limited = [place for place, limit in enumerate(budget.limits) if limit is not None]
        self._limit = np.array([limit for limit in budget.limits if limit is not None], dtype=np.float64)

    @property
    def waiting(self) -> tuple[int, ...]:
        """Numbers of the samples that are in no pack yet, oldest first; :meth:`restore` takes them."""
        return tuple(index for index, _ in self._waiting)

    def restore(self, waiting: Sequence[tuple[int, SampleSize]]) -> None:
        """Be where another packer was. With a smaller buffer than that one's, packs are made as fast as samples come.

        Args:
            waiting: Numbers and measures of the samples that waited, oldest first.

        Raises:
            ValueError: If one of them exceeds the budget and may not stand alone.
        """
        for index, size in waiting:
            self._fits(index, size)
        self._waiting = list(waiting)

    def add(self, index: int, size: SampleSize) -> list[int] | None:
        """Take a sample.

        Args:
            index: Its number.
            size: Its measures.

        Returns:
            The sample numbers of a pack, if one was made.

        Raises:
            ValueError: If the sample exceeds the budget and may not stand alone.
        """
        if not self._fits(index, size):
            return [index]
        self._waiting.append((index, size))
        return self._make() if len(self._waiting) >= self.buffer else None

    def drain(self) -> Iterator[list[int]]:
        """Packs of all samples that wait; the last one may be far from full."""
        while self._waiting:
            yield self._make()

    def _fits(self, index: int, size: SampleSize) -> bool:
        """Whether a sample fits into a pack; one that does not has to be allowed to stand alone."""
        excess = self.budget.excess(size)
        if excess is not None and not self.alone:
            raise ValueError(f"sample {index} has {excess}: leave it out, raise the budget, or let it stand alone")
        return excess is None

    def _make(self) -> list[int]:
        if len(self._limited) == 1:
            chosen = _best_fit_tokens([size.tokens for _, size in self._waiting], self.budget.tokens)
        else:
            needs = np.array([size.measures for _, size in self._waiting])[:, self._limited]
            chosen = _best_fit(needs, self._limit)
        pack = [self._waiting[place][0] for place in chosen]
        taken = set(chosen)
        self._waiting = [entry for place, entry in enumerate(self._waiting) if place not in taken]
        return pack


def _best_fit(needs: np.ndarray, limit: np.ndarray) -> list[int]:
    """Rows chosen from ``[N, measures]``: the first, then always the one that suits best what is left."""
    shares = needs / limit
    lengths = np.linalg.norm(shares, axis=1)
    chosen, free = [0], np.ones(len(needs), dtype=bool)
    free[0] = False
    room = limit - needs[0]
    while True:
        fits = free & (needs <= room).all(axis=1)
        if not fits.any():
            return _exchanged(needs, chosen, free, room)
        left = room / limit
        products = shares @ left
        alike = np.round(products / (lengths * np.linalg.norm(left)), 3)  # a cosine; thousandths count as equal
        place = int(np.where(fits, alike + 1e-4 * products / len(limit), -1.0).argmax())
        chosen.append(place)
        free[place] = False
        room = room - needs[place]


def _exchanged(needs: np.ndarray, chosen: list[int], free: np.ndarray, room: np.ndarray) -> list[int]:
    """The same rows with one of them, but not the first, for a row that leaves fewer tokens free, if there is one."""
    best, gain = None, 0.0
    for position, place in enumerate(chosen[1:], 1):
        fits = free & (needs <= room + needs[place]).all(axis=1)
        gains = np.where(fits, needs[:, 0] - needs[place, 0], 0.0)
        other = int(gains.argmax())
        if gains[other] > gain:
            best, gain = (position, other), float(gains[other])
    if best is not None:
        chosen[best[0]] = best[1]
    return chosen


def _best_fit_tokens(lengths: list[int], limit: int) -> list[int]:
    """:func:`_best_fit` for tokens alone, in sorted order, and then one sample exchanged for two."""
    ordered = sorted((length, -place) for place, length in enumerate(lengths))  # of equal ones the oldest is last
    chosen, room = [0], limit - lengths[0]
    ordered.remove((lengths[0], 0))
    while (found := bisect_right(ordered, (room, 1))) > 0:
        length, place = ordered.pop(found - 1)
        chosen.append(-place)
        room -= length
    room = _exchange_one(lengths, chosen, ordered, room)
    _exchange_two(lengths, chosen, ordered, room)
    return chosen


def _exchange_one(lengths: list[int], chosen: list[int], ordered: list[tuple[int, int]], room: int) -> int:
    """:func:`_exchanged` over the samples that are left, in sorted order; returns the room that is left then."""
    best, gain = None, 0
    for position, place in enumerate(chosen[1:], 1):
        found = bisect_right(ordered, (room + lengths[place], 1))
        if found and ordered[found - 1][0] - lengths[place] > gain:
            best, gain = (position, found - 1), ordered[found - 1][0] - lengths[place]
    if best is not None:
        position, found = best
        _, other = ordered.pop(found)
        insort(ordered, (lengths[chosen[position]], -chosen[position]))
        chosen[position] = -other
    return room - gain


def _exchange_two(lengths: list[int], chosen: list[int], ordered: list[tuple[int, int]], room: int) -> None:
    """One chosen sample, but not the first, for the two waiting ones that leave fewest tokens free, if there are such."""
    best, gain = None, 0
    tried: set[int] = set()
    for position, place in enumerate(chosen[1:], 1):
        length = lengths[place]
        low, high = 0, len(ordered) - 1
        while low < high and gain < room and length not in tried:
            more = ordered[low][0] + ordered[high][0] - length
            if more > room:
                high -= 1
                continue
            if more > gain:
                best, gain = (position, low, high), more
            low += 1
        tried.add(length)
    if best is not None:
        position, low, high = best
        chosen[position : position + 1] = [-ordered[low][1], -ordered[high][1]]
