"""Balance: the samples of a global step divided among ranks so that no rank waits long for another.

Pure functions of costs. Every rank computes the same division and takes its own share, so nothing is communicated.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from keyekit.data.cost import SampleSize
from keyekit.data.packer import PackBudget

__all__ = ["balance", "balance_packs", "imbalance"]

Name = TypeVar("Name", bound=Hashable)
Wanted = TypeVar("Wanted", contravariant=True)


class _Sizes(Protocol[Wanted]):
    """Measures by name: a list, for numbers, or a mapping."""

    def __getitem__(self, name: Wanted, /) -> SampleSize: ...


def balance(costs: Sequence[float], ranks: int, exchanges: int = 64) -> list[list[int]]:
    """Largest first to the least loaded rank (Keye-VL 8B sheet 6), the lower number among equals.

    Where the cheapest samples are not cheap, that leaves a few percent. So the busiest rank then gives a sample or two away,
    or exchanges them for cheaper ones, as long as that helps.

    Args:
        costs: Estimated cost of every sample of a global step.
        ranks: Ranks, or groups of ranks that share samples.
        exchanges: Exchanges at most; 0 is the reports' method alone.

    Returns:
        Sample numbers of each rank; every sample once.

    Raises:
        ValueError: If there is no rank.

    Example:
        >>> balance([1, 7, 3, 5], ranks=2)
        [[1, 0], [3, 2]]
    """
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: somebody has to take the samples")
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]  # a heap: the least loaded rank comes first
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, rank = loads[0]
        shares[rank].append(index)
        heapq.heapreplace(loads, (load + costs[index], rank))
    _even_out(shares, np.asarray(costs, dtype=np.float64)[:, None], np.array([np.inf]), exchanges)
    return shares


def imbalance(costs: Sequence[float], shares: Sequence[Sequence[int]]) -> float:
    """Load of the busiest rank over the mean; the others wait for it, so a step takes this many times the ideal.

    Args:
        costs: Cost of every sample.
        shares: Sample numbers of each rank.

    Example:
        >>> imbalance([1, 7, 3, 5], [[1, 0], [3, 2]]), imbalance([1, 7, 3, 5], [[0, 2], [1, 3]])
        (1.0, 1.5)
    """
    loads = [sum(costs[index] for index in share) for share in shares]
    total = sum(loads)
    return max(loads) * len(loads) / total if total else 1.0


def balance_packs(
    packs: Sequence[Sequence[Name]], sizes: _Sizes[Name], budget: PackBudget, exchanges: int = 64
) -> list[list[Name]]:
    """The samples of full packs, one pack a rank, exchanged until their operations are alike.

    Packs that are full leave no room for :func:`balance`. So the dearest pack exchanges a sample or two for some of the
    cheapest that agrees, as long as the dearest of the two becomes cheaper and both stay within the budget. Pack numbers, and
    which samples the step has, stay as they are: what was read of an epoch does not depend on the number of ranks.

    Args:
        packs: Samples of the packs of a step, by numbers or other names; packs may be empty.
        sizes: Measures of these samples.
        budget: What a pack may hold.
        exchanges: Exchanges at most.

    Returns:
        As many packs with the same samples altogether.
    """
    balanced = [list(pack) for pack in packs]
    limit = np.array([np.inf if limit is None else limit for limit in budget.limits])
    needs = {index: np.array(sizes[index].measures) for pack in packs for index in pack}
    _even_out(balanced, needs, limit, exchanges)
    return balanced


_Needs = Mapping[Any, np.ndarray] | np.ndarray
_FLOPS = -1  # column of the measures
_CLOSE = 1e-3
"""By what share of the mean the dearest pack may exceed it when exchanging ends: less is no faster."""
_PAIRS_UP_TO = 16
"""Samples of a pack up to which two at a time are exchanged as well. Larger packs have enough singles to choose from."""


class _Bundles(NamedTuple):
    """What a pack can give away at once: nothing, a sample, or two.

    Args:
        places: Places in the pack of each bundle.
        sums: ``[bundles, measures]``.
    """

    places: list[tuple[int, ...]]
    sums: np.ndarray

    @classmethod
    def of(cls, pack: Sequence[Any], needs: _Needs, measures: int) -> _Bundles:
        """All bundles of a pack."""
        rows = np.stack([needs[name] for name in pack]) if pack else np.zeros((0, measures))
        first, second = np.triu_indices(len(pack) if len(pack) <= _PAIRS_UP_TO else 0, 1)
        sums = np.vstack([np.zeros((1, measures)), rows, rows[first] + rows[second]])
        singles = [(place,) for place in range(len(pack))]
        return cls([(), *singles, *zip(first.tolist(), second.tolist(), strict=True)], sums)


def _even_out(packs: list[list[Any]], needs: _Needs, limit: np.ndarray, exchanges: int) -> None:
    """Exchange samples, in place, until the dearest pack cannot be made cheaper by one exchange more."""
    bundles = [_Bundles.of(pack, needs, len(limit)) for pack in packs]
    totals = np.array([found.sums[1 : 1 + len(pack)].sum(axis=0) for found, pack in zip(bundles, packs, strict=True)])
    for _ in range(exchanges if len(packs) > 1 and any(packs) else 0):
        changed = _relieve(packs, bundles, totals, limit)
        if changed is None:
            break
        for rank in changed:
            bundles[rank] = _Bundles.of(packs[rank], needs, len(limit))
            totals[rank] = bundles[rank].sums[1 : 1 + len(packs[rank])].sum(axis=0)


def _relieve(
    packs: list[list[Any]], bundles: list[_Bundles], totals: np.ndarray, limit: np.ndarray
) -> tuple[int, int] | None:
    """Make the dearest pack cheaper by an exchange with the cheapest that there is one with; returns the two."""
    loads = totals[:, _FLOPS]
    dearest = int(loads.argmax())
    if loads[dearest] <= loads.mean() * (1 + _CLOSE):
        return None
    for rank in np.argsort(loads, kind="stable").tolist():
        if rank == dearest or loads[rank] >= loads[dearest]:
            break
        passed = bundles[dearest].sums[:, None] - bundles[rank].sums  # [given, taken, measures]
        giver, receiver = totals[dearest] - passed, totals[rank] + passed
        allowed = ((giver <= limit) & (receiver <= limit)).all(axis=2)
        peaks = np.where(allowed, np.maximum(giver, receiver)[..., _FLOPS], np.inf)
        given, taken = np.unravel_index(peaks.argmin(), peaks.shape)
        if peaks[given, taken] < loads[dearest] * (1 - 1e-9):  # less than rounding is no gain
            leaving = _taken_out(packs[dearest], bundles[dearest].places[given])
            packs[dearest] += _taken_out(packs[rank], bundles[rank].places[taken])
            packs[rank] += leaving
            return dearest, rank
    return None


def _taken_out(pack: list[Any], places: tuple[int, ...]) -> list[Any]:
    return [pack.pop(place) for place in reversed(places)]
