"""Balance: the samples of a global step divided among ranks so that no rank waits long for another.

Pure functions of costs. Every rank computes the same division and takes its own share, so nothing is communicated.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from keyekit.data.cost import SampleSize
from keyekit.data.packer import PackBudget

__all__ = ["balance", "balance_packs", "imbalance"]


def balance(costs: Sequence[float], ranks: int, exchanges: int = 64) -> list[list[int]]:
    """Largest first to the least loaded rank (Keye-VL 8B sheet 6), the lower number among equals.

    Where the cheapest samples are not cheap, that leaves a few percent. So the busiest rank then gives samples away, or
    exchanges them for cheaper ones, as long as that helps.

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
    packs: Sequence[Sequence[int]], sizes: Sequence[SampleSize], budget: PackBudget, exchanges: int = 64
) -> list[list[int]]:
    """The samples of full packs, one pack a rank, exchanged until their operations are alike.

    Packs that are full leave no room for :func:`balance`. So samples of the dearest pack are moved to others, or exchanged
    for cheaper ones, as long as the dearest of the two becomes cheaper and both stay within the budget. Pack numbers, and
    which samples the step has, stay as they are: what was read of an epoch does not depend on the number of ranks.

    Args:
        packs: Sample numbers of the packs of a step.
        sizes: Measures of all samples.
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


_Needs = Mapping[int, np.ndarray] | np.ndarray
_FLOPS = -1  # column of the measures


def _even_out(packs: list[list[int]], needs: _Needs, limit: np.ndarray, exchanges: int) -> None:
    """Exchange samples, in place, until the dearest pack cannot be made cheaper by one exchange more."""
    for _ in range(exchanges if len(packs) > 1 and any(packs) else 0):
        if not _relieve(packs, needs, limit):
            break


def _relieve(packs: list[list[int]], needs: _Needs, limit: np.ndarray) -> bool:
    """Make the dearest pack cheaper by the best single exchange; whether there was one."""
    rows = [np.stack([needs[index] for index in pack]) if pack else np.zeros((0, len(limit))) for pack in packs]
    totals = [row.sum(axis=0) for row in rows]
    dearest = max(range(len(packs)), key=lambda rank: totals[rank][_FLOPS])
    best, choice = totals[dearest][_FLOPS] * (1 - 1e-9), None  # less than rounding is no gain
    for rank in range(len(packs)):
        if rank == dearest:
            continue
        # [given, taken, measures]: every sample of the dearest pack against nothing and every sample of the other.
        passed = rows[dearest][:, None] - np.vstack([np.zeros_like(limit), rows[rank]])
        giver, receiver = totals[dearest] - passed, totals[rank] + passed
        allowed = ((giver <= limit) & (receiver <= limit)).all(axis=2)
        peaks = np.where(allowed, np.maximum(giver, receiver)[..., _FLOPS], np.inf)
        given, taken = np.unravel_index(peaks.argmin(), peaks.shape)
        if peaks[given, taken] < best:
            best, choice = peaks[given, taken], (rank, int(given), int(taken) - 1)
    if choice is None:
        return False
    rank, given, taken = choice
    leaving = packs[dearest].pop(given)
    if taken >= 0:
        packs[dearest].append(packs[rank].pop(taken))
    packs[rank].append(leaving)
    return True
