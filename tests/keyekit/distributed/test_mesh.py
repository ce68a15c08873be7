"""Ranks as grids; tests/distributed/test_equalities.py trains on them."""

from __future__ import annotations

import pytest

from keyekit.distributed.mesh import RankGrid
from keyekit.distributed.part_plan import PartPlan


def test_consecutive_ranks_share_a_pack():
    grid = RankGrid(12, sequence_parallel=3)
    assert grid.data_ranks == 4
    assert [grid.data_rank(rank) for rank in range(12)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_one_rank_shares_nothing():
    grid = RankGrid(1)
    assert (grid.data_ranks, grid.data_rank(0)) == (1, 0)


@pytest.mark.parametrize("degree", ["sequence_parallel", "expert_parallel"])
@pytest.mark.parametrize("value", [0, 3, 16])
def test_a_degree_that_does_not_divide_the_ranks_is_refused(degree, value):
    with pytest.raises(ValueError, match=rf"{degree}={value} does not divide the 8 ranks.*choose one of 1, 2, 4, 8"):
        RankGrid(8, **{degree: value})


def test_a_shard_group_that_does_not_divide_the_ranks_is_refused():
    grid = RankGrid(6)
    grid.check(PartPlan(sharding="hybrid", shard_group=3), "vision")
    grid.check(PartPlan(), "vision")
    with pytest.raises(ValueError, match=r"vision\.shard_group=4 does not divide the 6 ranks"):
        grid.check(PartPlan(sharding="hybrid", shard_group=4), "vision")
