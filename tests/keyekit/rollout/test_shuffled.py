from __future__ import annotations

from collections import Counter

import pytest

from keyekit.rewards.base import example_sample
from keyekit.rollout.shuffled import shuffled


def test_rewards_go_to_other_prompts_and_stay_the_same_rewards() -> None:
    samples = [example_sample(question) for question in "aaabbbccc"]
    answers = [f"{sample.question}{number}" for number, sample in enumerate(samples)]
    dealt = shuffled(lambda samples, answers: answers)
    outcomes = dealt(samples, answers)
    assert Counter(outcomes) == Counter(answers)
    assert all(outcome[0] != answer[0] for outcome, answer in zip(outcomes, answers, strict=True))
    assert [{outcome[0] for outcome in outcomes[start : start + 3]} for start in (0, 3, 6)] != [{"a"}, {"b"}, {"c"}]
    assert outcomes == dealt(samples, answers)  # nothing but the seed and the answers decides


@pytest.mark.parametrize("questions", ["aaa", "aab", "abab"])
def test_what_cannot_be_dealt_is_refused(questions) -> None:
    samples = [example_sample(question) for question in questions]
    with pytest.raises(ValueError, match="dealt to other prompts"):
        shuffled(lambda samples, answers: answers)(samples, list(questions))
