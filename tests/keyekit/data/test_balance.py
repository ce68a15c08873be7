"""Balance: largest first to the least loaded, against the definition, its bound and the best division there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from keyekit.data.balance import balance, balance_packs, imbalance
from keyekit.data.cost import SampleSize
from keyekit.data.packer import PackBudget


@pytest.mark.parametrize("seed", range(5))
def test_largest_first_to_the_least_loaded(seed: int) -> None:
    costs = np.random.default_rng(seed).integers(1, 20, 30).tolist()
    loads, expected = [0] * 4, [[] for _ in range(4)]
    for index in sorted(range(30), key=lambda index: costs[index], reverse=True):
        rank = loads.index(min(loads))
        loads[rank] += costs[index]
        expected[rank].append(index)
    assert balance(costs, 4, exchanges=0) == expected
    assert imbalance(costs, balance(costs, 4)) <= imbalance(costs, expected)


@pytest.mark.parametrize("seed", range(10))
def test_never_further_from_the_best_than_graham_says(seed: int) -> None:
    costs = np.random.default_rng(seed).integers(1, 30, 8).tolist()
    found = max(sum(costs[index] for index in share) for share in balance(costs, 3, exchanges=0))
    best = min(
        max(sum(cost for cost, at in zip(costs, ranks, strict=True) if at == rank) for rank in range(3))
        for ranks in product(range(3), repeat=8)
    )
    assert found <= (4 / 3 - 1 / 9) * best


@pytest.mark.parametrize("samples", [64, 128])
@pytest.mark.parametrize("seed", range(5))
def test_eight_ranks_of_heavy_tailed_costs_are_within_five_percent(seed: int, samples: int) -> None:
    random = np.random.default_rng(seed)
    costs: list[float] = []
    while len(costs) < samples:
        costs = [
            cost for cost in [*costs, 1 + random.pareto(1.2)] if cost <= (sum(costs) + cost) / 16 or len(costs) < 32
        ]
        if len(costs) == samples:
            costs = [cost for cost in costs if cost <= sum(costs) / 16]
    shares = balance(costs, 8)
    assert sorted(index for share in shares for index in share) == list(range(samples))
    arrival = [list(range(rank, samples, 8)) for rank in range(8)]
    assert imbalance(costs, shares) <= 1.05 < imbalance(costs, arrival)


def test_exchanges_help_where_the_cheapest_are_not_cheap() -> None:
    costs = [3.0, 3.0, 2.0, 2.0, 2.0]
    assert imbalance(costs, balance(costs, 2, exchanges=0)) == 7 / 6
    assert imbalance(costs, balance(costs, 2)) == 1.0


def test_odd_numbers_of_samples() -> None:
    assert balance([], 2) == [[], []]
    assert balance([3.0], 2) == [[0], []]
    assert imbalance([], [[], []]) == 1.0
    assert imbalance([3.0], [[0], []]) == 2.0
    assert balance([1.0, 1.0, 1.0], 3) == [[0], [1], [2]]
    with pytest.raises(ValueError, match="ranks=0"):
        balance([1.0], 0)


def test_full_packs_are_exchanged_within_their_budget() -> None:
    random = np.random.default_rng(0)
    sizes = [
        SampleSize(tokens=int(tokens), patches=int(patches), flops=float(tokens) ** 2 + 50 * float(patches))
        for tokens, patches in random.integers(1, 40, (64, 2))
    ]
    packs = [list(range(start, 64, 4)) for start in range(4)]
    tokens = max(sum(sizes[index].tokens for index in pack) for pack in packs)
    budget = PackBudget(tokens=tokens, patches=10_000)
    found = balance_packs(packs, sizes, budget)
    flops = [size.flops for size in sizes]
    assert sorted(index for pack in found for index in pack) == list(range(64))
    assert max(sum(sizes[index].tokens for index in pack) for pack in found) <= tokens
    assert imbalance(flops, found) < 1.01 < imbalance(flops, packs)
    assert packs == [list(range(start, 64, 4)) for start in range(4)]
    assert balance_packs(packs, sizes, budget) == found


def test_packs_that_cannot_be_bettered_stay() -> None:
    sizes = [SampleSize(tokens=4, flops=flops) for flops in (9.0, 1.0)]
    budget = PackBudget(tokens=4)
    assert balance_packs([[0], [1]], sizes, budget) == [[0], [1]]
    assert balance_packs([[0]], sizes, budget) == [[0]]
    assert balance_packs([], sizes, budget) == []


def test_names_may_be_anything_and_an_empty_pack_is_given_something() -> None:
    sizes = {name: SampleSize(tokens=4, flops=4.0) for name in "abcd"}
    found = balance_packs([["a", "b", "c", "d"], []], sizes, PackBudget(tokens=16))
    assert sorted(map(len, found)) == [2, 2]
    assert sorted(name for pack in found for name in pack) == list("abcd")


def test_two_are_exchanged_for_one_where_no_single_exchange_fits() -> None:
    measures = [(4, 4.0), (4, 5.0), (4, 5.0), (1, 1.0), (3, 1.0), (8, 1.0)]
    sizes = [SampleSize(tokens=tokens, flops=flops) for tokens, flops in measures]
    found = balance_packs([[0, 1, 2], [3, 4, 5]], sizes, PackBudget(tokens=12))  # 14 and 3; 4 tokens for 1 + 3
    assert sorted(index for pack in found for index in pack) == list(range(6))
    assert [sum(sizes[index].tokens for index in pack) for pack in found] == [12, 12]
    assert sorted(sum(sizes[index].flops for index in pack) for pack in found) == [6, 11]


def test_a_pack_beyond_the_budget_stays_alone() -> None:
    sizes = [SampleSize(tokens=20, flops=90.0), *[SampleSize(tokens=4, flops=4.0)] * 3]
    assert balance_packs([[0], [1, 2], [3]], sizes, PackBudget(tokens=8)) == [[0], [1, 2], [3]]


def test_what_is_not_measured_is_not_exchanged() -> None:
    sizes = [SampleSize(tokens=4), SampleSize(tokens=1), SampleSize(tokens=2)]
    assert balance_packs([[0, 1], [2]], sizes, PackBudget(tokens=8)) == [[0, 1], [2]]
