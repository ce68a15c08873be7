"""Who encodes what: plans over any loads, costs by an account of their own, and what balancing gains."""

from __future__ import annotations

import random

import pytest
import torch

from keyekit.data.cost import SampleCost
from keyekit.distributed.vision_plan import RankWork, VisionCost, balance_report, patches_of, plan_vision
from keyekit.models.presets import preset
from keyekit.models.sizes import NetworkSizes


def loads_of(costs: list[list[float]], plan: list[list[int]]) -> list[float]:
    loads = [0.0] * len(costs)
    for own, ranks in zip(costs, plan, strict=True):
        for cost, rank in zip(own, ranks, strict=True):
            loads[rank] += cost
    return loads


def sizes_of(name: str) -> NetworkSizes:
    with torch.device("meta"):
        return NetworkSizes.of(preset(name).build())


@pytest.mark.parametrize("seed", range(20))
def test_any_loads_are_evened_out_to_within_one_image(seed: int) -> None:
    draw = random.Random(seed)
    ranks = draw.choice([1, 2, 3, 8])
    costs = [[draw.expovariate(1) for _ in range(draw.choice([0, 0, 1, 5, 40]))] for _ in range(ranks)]
    plan = plan_vision(costs)
    assert [len(own) for own in plan] == [len(own) for own in costs]
    total = sum(map(sum, costs))
    largest = max((cost for own in costs for cost in own), default=0.0)
    # Whatever goes to the least loaded rank finds it below the mean, and what stays at home keeps within the mean.
    assert max(loads_of(costs, plan)) <= total / ranks + largest + 1e-9


def test_nothing_travels_where_ranks_are_loaded_alike() -> None:
    assert plan_vision([[3.0, 1.0], [2.0, 2.0], [4.0]]) == [[0, 0], [1, 1], [2]]


def test_an_image_larger_than_all_the_others_together_has_a_rank_to_itself() -> None:
    costs = [[1.0, 1.0, 100.0, 1.0], [1.0], [1.0, 1.0]]
    plan = plan_vision(costs)
    assert [rank for own in plan for rank in own].count(0) == 1
    assert plan[0][2] == 0, "it stays at home, where nothing else is"
    assert loads_of(costs, plan) == [100.0, 3.0, 3.0]


@pytest.mark.parametrize("costs", [[], [[]], [[], [], []]])
def test_without_images_there_is_nothing_to_plan(costs: list[list[float]]) -> None:
    assert plan_vision(costs) == costs


def test_the_cost_of_an_image_is_the_vision_part_of_a_sample() -> None:
    cost, samples = VisionCost(sizes_of("keye_vl_8b_tiny")), SampleCost.of_preset("keye_vl_8b_tiny")
    for image, grids in (
        (((8, 8),), [(1, 8, 8)]),
        (((4, 6), (4, 6)), [(2, 4, 6)]),
        (((4, 4), (2, 6)), [(1, 4, 4), (1, 2, 6)]),
    ):
        expected = samples.size(10, grids).flops - samples.size(10).flops
        assert cost(image) == pytest.approx(expected, rel=1e-9)


def test_cost_is_quadratic_in_each_image() -> None:
    cost = VisionCost(sizes_of("keye_vl_2_30b_a3b"))
    small, large = cost(((32, 32),)), cost(((128, 128),))
    assert large / small > 16 * 1.5  # 16 times the patches, and 256 times the pairs
    assert cost(((32, 32),) * 3) == pytest.approx(3 * small)


def skewed() -> list[RankWork]:
    """Packs of 16K tokens: two of video, one of large images, five of text and small ones."""
    frame, page, icon = ((28, 28),), ((96, 128),), ((8, 8),)
    video = RankWork(lengths=(16_384,), images=(frame,) * 80)
    pages = RankWork(lengths=(4096,) * 4, images=(page,) * 5)
    text = [RankWork(lengths=(1024,) * 16, images=(icon,) * number) for number in (0, 0, 4, 16, 40)]
    return [video, video, pages, *text]


def test_balancing_a_skewed_mixture_takes_at_most_85_percent_of_the_time() -> None:
    sizes = sizes_of("keye_vl_2_30b_a3b")
    report = balance_report(sizes, skewed())
    assert report.ratio <= 0.85
    assert 0.3 < report.moved < 0.9
    assert 0 < report.exchange < 0.1 * report.balanced
    # The same by hand: the busiest rank alone, against shared towers and the busiest decoder.
    cost = VisionCost(sizes)
    towers = [sum(cost(image) for image in pack.images) for pack in skewed()]
    assert report.balanced >= sum(towers) / 8 / 4e14
    assert report.alone >= max(towers) / 4e14


def test_where_nothing_is_skewed_nothing_moves_and_nothing_is_gained() -> None:
    pack = RankWork(lengths=(4096,), images=(((28, 28),),) * 10)
    report = balance_report(sizes_of("keye_vl_2_30b_a3b"), [pack] * 4)
    assert (report.moved, report.exchange) == (0.0, 0.0)
    assert report.ratio == pytest.approx(1.0)


def test_a_slow_network_makes_balancing_dear() -> None:
    sizes = sizes_of("keye_vl_2_30b_a3b")
    fast, slow = (balance_report(sizes, skewed(), bytes_per_second=speed) for speed in (5e10, 5e8))
    assert slow.exchange == pytest.approx(100 * fast.exchange)
    assert slow.ratio > fast.ratio


def test_text_alone_costs_no_tower() -> None:
    report = balance_report(sizes_of("keye_vl_8b"), [RankWork(lengths=(100,))] * 2)
    assert (report.moved, report.ratio) == (0.0, 1.0)
    assert patches_of(()) == 0
