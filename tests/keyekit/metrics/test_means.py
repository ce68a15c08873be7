from __future__ import annotations

import pytest

from keyekit.metrics.intervals import wilson_interval
from keyekit.metrics.means import OVERALL, GroupedMeans
from keyekit.testing.distributed import run_distributed


def test_means_of_groups_with_chance_and_interval():
    means = GroupedMeans(["short", "long", "never"])
    means.update(
        [1.0, 0.0, 1.0], units=["a", "b", "c"], groups=[["short"], ["short"], ["long"]], chances=[0.25, 0.5, None]
    )
    means.update([0.0], units=["d"])
    found = means.compute()
    assert list(found) == [OVERALL, "short", "long"], "groups without scores are left out"
    assert (found[OVERALL].value, found[OVERALL].count, found[OVERALL].chance) == (50.0, 4, None)
    assert (found["short"].value, found["short"].count, found["short"].chance) == (50.0, 2, 37.5)
    assert (found["long"].value, found["long"].chance) == (100.0, None)
    assert (found["short"].low, found["short"].high) == pytest.approx([100 * end for end in wilson_interval(1, 2)])


def test_a_single_video_says_nothing_about_others():
    means = GroupedMeans()
    means.update([1.0, 0.0], units=["a", "a"])
    assert (means.compute()[OVERALL].low, means.compute()[OVERALL].high) == (None, None)


def test_no_scores():
    means = GroupedMeans(["short"])
    means.update([], units=[])
    assert means.compute() == {}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"values": [1.5], "units": ["a"]}, "between 0 and 1"),
        ({"values": [float("nan")], "units": ["a"]}, "between 0 and 1"),
        ({"values": [1.0], "units": []}, "1 scores, 0 units"),
        ({"values": [1.0], "units": ["a"], "groups": [["odd"]]}, "odd were not announced; there are short"),
    ],
)
def test_what_cannot_be_averaged_is_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        GroupedMeans(["short"]).update(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"groups": ["a", "a"]}, {"groups": [OVERALL]}, {"confidence": 1.0}, {"draws": 0}]
)
def test_settings_are_checked(arguments):
    with pytest.raises(ValueError, match=r"distinct|confidence"):
        GroupedMeans(**arguments)


SCORES = [(0.25, "a", "x"), (1.0, "a", "y"), (0.5, "b", "x"), (0.0, "c", "x"), (0.75, "d", "y")]


def mean_on_a_rank(rank: int, world_size: int, everything_on_one: bool = False) -> dict:
    means = GroupedMeans(["x", "y"])
    if everything_on_one and rank:
        means.update([], units=[])
        return means.compute()
    mine = SCORES if everything_on_one else SCORES[rank::world_size]
    values, units, groups = zip(*mine, strict=True)
    means.update(values, units, [[group] for group in groups])
    return means.compute()


@pytest.mark.parametrize("everything_on_one", [False, True])
def test_ranks_together_know_what_one_alone_would(everything_on_one):
    alone = mean_on_a_rank(0, 1)
    for together in run_distributed(mean_on_a_rank, 2, everything_on_one):
        assert together.keys() == alone.keys()
        for name, estimate in together.items():
            assert estimate.value == pytest.approx(alone[name].value)
            assert (estimate.low, estimate.high) == pytest.approx((alone[name].low, alone[name].high))
