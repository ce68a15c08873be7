"""Sorting of visits."""

import torch

from keyekit.nn.moe.base import RouterStatistics, Routing
from keyekit.nn.moe.visits import sort_visits


def routing_of(experts: list[list[int]], num_visits: int | None = None) -> Routing:
    statistics = RouterStatistics(probabilities=torch.ones(4), counts=torch.ones(4), num_tokens=len(experts))
    chosen = torch.tensor(experts)
    return Routing(weights=torch.ones(chosen.shape), experts=chosen, statistics=statistics, num_visits=num_visits)


def test_visits_come_by_expert_then_by_token() -> None:
    visits = sort_visits(routing_of([[2, 0], [0, 3], [2, 3]]), 4)
    assert visits.tokens.tolist() == [0, 1, 0, 2, 1, 2]
    assert visits.order.tolist() == [1, 2, 0, 4, 3, 5]
    assert visits.counts.tolist() == [2, 0, 2, 2]


def test_missing_visits_are_left_out() -> None:
    visits = sort_visits(routing_of([[-1, 0], [-1, -1], [3, 0]], num_visits=3), 4)
    assert visits.tokens.tolist() == [0, 2, 2]
    assert visits.counts.tolist() == [2, 0, 0, 1]
