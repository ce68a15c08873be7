from __future__ import annotations

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rewards.correction import SelfCorrection
from keyekit.rewards.counting import Counting


def test_gains_and_losses():
    corrected = example_sample("?", "3", {"first_answer": "4"})
    spoilt = example_sample("?", "3", {"first_answer": "3"})
    alone = example_sample("?", "3")
    reward = SelfCorrection(Counting(), bonus=0.5)
    found = reward.score([corrected, corrected, spoilt, spoilt, alone, alone], ["3", "5", "3", "4", "3", "4"])
    assert [outcome.value for outcome in found] == [1.5, 0.0, 1.0, -0.5, 1.0, 0.0]
    assert [outcome.reason for outcome in found[:4]] == [
        "corrected",
        "unchanged: wrong count",
        "unchanged: right count",
        "spoilt",
    ]
    assert "gain" not in found[4].parts


@pytest.mark.parametrize("bonus", [0.0, 0.5, 1.0])
def test_a_wrong_first_answer_never_pays_over_both_turns(bonus):
    first = Counting()
    both = []
    for said in ("4", "3"):
        sample = example_sample("?", "3", {"first_answer": said})
        both.append(
            first.score([sample], [said])[0].value + SelfCorrection(first, bonus).score([sample], ["3"])[0].value
        )
    assert both[0] <= both[1]


def test_arguments():
    with pytest.raises(ValueError, match="bonus=2"):
        SelfCorrection(Counting(), bonus=2)
