from __future__ import annotations

import itertools
import random

import pytest

from keyekit.rewards.assignment import best_pairs


def best_by_trying(weights: list[list[float]]) -> float:
    rows, columns = len(weights), len(weights[0])
    if rows > columns:
        return best_by_trying([list(row) for row in zip(*weights, strict=True)])
    return max(
        sum(weights[row][column] for row, column in enumerate(chosen))
        for chosen in itertools.permutations(range(columns), rows)
    )


def test_the_best_of_all_assignments():
    generator = random.Random(0)
    for _ in range(300):
        rows, columns = generator.randrange(1, 6), generator.randrange(1, 6)
        ties = generator.random() < 0.5  # few different weights, many zeros
        weights = [
            [generator.choice([0, 0, 0.5, 1]) if ties else generator.random() for _ in range(columns)]
            for _ in range(rows)
        ]
        pairs = best_pairs(weights)
        assert (
            len(pairs) == len({row for row, _ in pairs}) == len({column for _, column in pairs}) == min(rows, columns)
        )
        assert sum(weights[row][column] for row, column in pairs) == pytest.approx(best_by_trying(weights))


def test_greedy_would_be_worse():
    assert best_pairs([[0.9, 0.8], [0.8, 0.1]]) == [(0, 1), (1, 0)]


def test_nothing_to_pair():
    assert best_pairs([]) == []
    assert best_pairs([[], []]) == []


@pytest.mark.parametrize("weights", [[[1.0], [1.0, 2.0]], [[-1.0]], [[float("nan")]]])
def test_weights_that_are_none(weights):
    with pytest.raises(ValueError, match="weights of at least 0"):
        best_pairs(weights)
