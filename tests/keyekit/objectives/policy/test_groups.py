import math

import pytest
import torch

from keyekit.objectives.policy.groups import informative_groups, prompts_to_sample


def test_groups_that_teach_nothing_are_dropped_and_counted() -> None:
    nan, inf = math.nan, math.inf
    groups = torch.tensor([4, 4, 4, 1, 1, 7, 8, 8, 9, 9, 9, 6])
    rewards = torch.tensor([1, 0, nan, 1, 1, 5, 1, nan, 0, inf, 2, nan])
    choice = informative_groups(rewards, groups)
    # 4 and 9 vary; 1 is flat; 7 is one answer, 8 has one left, 6 none.
    assert choice.kept.tolist() == [True, True, False, False, False, False, False, False, True, False, True, False]
    assert (choice.num_groups, choice.num_kept, choice.num_flat, choice.num_alone) == (6, 2, 1, 3)
    assert choice.num_broken == 4
    assert choice.kept_share == pytest.approx(2 / 6)


def test_rounding_of_a_weighted_sum_is_no_variance() -> None:
    rewards = torch.tensor([0.1 + 0.2, 0.3], dtype=torch.float64)
    assert rewards[0] != rewards[1]
    groups = torch.tensor([0, 0])
    assert informative_groups(rewards, groups).num_flat == 1
    assert informative_groups(rewards, groups, tolerance=0).num_kept == 1


def test_no_group() -> None:
    choice = informative_groups(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert (choice.num_groups, choice.kept_share) == (0, 0)


def test_the_number_of_prompts_grows_as_fewer_are_kept() -> None:
    assert [prompts_to_sample(10, share, limit=100, margin=1.0) for share in (1.0, 0.5, 0.3, 0.01, 0.0)] == [
        10,
        20,
        34,
        100,
        100,
    ]
    assert prompts_to_sample(0, 0.0, limit=100) == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"kept_share=1\.5"):
        prompts_to_sample(1, 1.5, 8)
    with pytest.raises(ValueError, match="limit=0"):
        prompts_to_sample(1, 0.5, 0)
    with pytest.raises(ValueError, match=r"rewards \(2,\) and groups \(1,\)"):
        informative_groups(torch.zeros(2), torch.zeros(1))
