from __future__ import annotations

import pytest

from keyekit.rewards.lost_samples import BrokenRewards, JudgeUnavailable, LostSamples, RewardBroken


def test_nothing_is_decided_by_few_answers_and_old_ones_are_forgotten():
    lost = LostSamples(most=0.5, window=4, patience=4)
    for one in (True, True, False, False, False, False, True, True):
        lost.count(one)
    with pytest.raises(JudgeUnavailable):
        lost.count(True)
    assert lost.total == 5
    with pytest.raises(ValueError, match="patience"):
        LostSamples(patience=0)


def test_errors_say_what_is_missing_and_where_to_look():
    for losses, error, told in (
        (LostSamples(0.5, 4, 2, "a report"), JudgeUnavailable, "gave a report too seldom.*max_lost_share"),
        (
            BrokenRewards(0.5, 4, 2, "Counting"),
            RewardBroken,
            "Counting computed no finite number for 100% of the last 2",
        ),
    ):
        losses.count(True)
        with pytest.raises(error, match=told):
            losses.count(True)
