from __future__ import annotations

import itertools
import random

import pytest

from keyekit.metrics.boxes import box_iou
from keyekit.rewards.base import RewardOutcome, example_sample
from keyekit.rewards.boxes import BoxMatching, ChangedRegions, read_boxes, without_duplicates

ONE, TWO = "[100, 100, 300, 300]", "[500, 500, 700, 800]"
BOTH = f"[{ONE}, {TWO}]"


def worth(reward, answer: str, expected: str = BOTH) -> RewardOutcome:
    return reward.outcome(example_sample("?", expected), answer)


def test_reading():
    assert read_boxes("(1, 2.5, 3, 4) and [10,20,30,40]") == [(1, 2.5, 3, 4), (10, 20, 30, 40)]
    assert read_boxes("<|box_start|>[[0, 0, 5000, 10]]<|box_end|>") == [(0, 0, 1000, 10)]
    assert read_boxes("[[300, 1, 200, 4]]") is None
    assert read_boxes("1, 2, 3, 4") is None
    assert read_boxes("[]") == read_boxes("There is none.") == []


def test_duplicates_overlap_an_earlier_box():
    boxes = [(0, 0, 100, 100), (0, 0, 100, 99), (50, 0, 150, 100)]
    assert without_duplicates(boxes, 0.9) == [boxes[0], boxes[2]]


def test_grounding_is_the_mean_overlap_of_matches():
    assert worth(BoxMatching(), f"[{TWO}, {ONE}]").value == 1.0
    assert worth(BoxMatching(), f"[{ONE}]").value == 0.5
    assert worth(BoxMatching(), f"[{ONE}, {TWO}, [0, 900, 50, 1000]]").value == pytest.approx(2 / 3)
    assert worth(BoxMatching(), f"[{TWO}, [100, 100, 300, 200]]").value == pytest.approx((1 + 0.5) / 2)
    assert worth(BoxMatching(min_overlap=0.6), f"[{TWO}, [100, 100, 300, 200]]").value == pytest.approx(0.5)
    assert worth(BoxMatching(), "on the left") == RewardOutcome.cannot_read("no boxes")
    assert worth(BoxMatching(), "[]").value == 0.0


def test_saying_a_box_twice_costs():
    assert worth(BoxMatching(), f"[{ONE}, {TWO}, {TWO}]").value == pytest.approx(0.9)
    assert worth(BoxMatching(duplicate_penalty=0.0), f"[{ONE}, {TWO}, {TWO}]").value == 1.0


def test_no_boxes_where_there_are_none():
    assert worth(BoxMatching(), "none", "[]").value == 1.0
    assert worth(BoxMatching(), BOTH, "[]").value == 0.0


def test_matching_is_the_best_of_all():
    generator = random.Random(1)

    def box():
        left, top = generator.randrange(600), generator.randrange(600)
        return [left, top, left + generator.randrange(50, 400), top + generator.randrange(50, 400)]

    for _ in range(60):
        said, wanted = ([box() for _ in range(generator.randrange(1, 5))] for _ in range(2))
        many, few = (said, wanted) if len(said) >= len(wanted) else (wanted, said)
        best = max(
            sum(box_iou(one, other) for one, other in zip(chosen, few, strict=True))
            for chosen in itertools.permutations(many, len(few))
        )
        reward = BoxMatching(min_overlap=0.0, duplicate_overlap=1.0)
        assert worth(reward, str(said), str(wanted)).value == pytest.approx(best / len(many))


def test_changed_regions_by_the_formula():
    reward = ChangedRegions(f_weight=0.6, overlap_weight=0.4, duplicate_penalty=0.2)
    answer = f"[{ONE}, {ONE}, [500, 500, 700, 575]]"  # found; twice; a quarter of the second
    f_score, mean = 2 * (1 + 0.25 / 0.5) / 4, (1 + 0.25) / 2
    found = worth(reward, answer)
    assert found.value == pytest.approx(0.6 * f_score + 0.4 * mean - 0.2)
    assert found.parts == {"f_score": pytest.approx(f_score), "overlap": pytest.approx(mean), "duplicates": 0.2}


def test_where_nothing_changed_boxes_cost():
    assert worth(ChangedRegions(), "no change", "[]").value == 1.0
    assert worth(ChangedRegions(), BOTH, "[]").value == pytest.approx(-0.2)
    assert worth(ChangedRegions(), "[]").value == 0.0


def test_bad_arguments_and_bad_samples():
    with pytest.raises(ValueError, match="holds no boxes"):
        worth(BoxMatching(), BOTH, "somewhere")
    for arguments in ({"min_overlap": 2}, {"duplicate_overlap": 0}, {"duplicate_penalty": -1}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            BoxMatching(**arguments)
    for arguments in ({"full_overlap": 0}, {"f_weight": -1}):
        with pytest.raises(ValueError, match=r"overlap|weights"):
            ChangedRegions(**arguments)
