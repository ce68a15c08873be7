"""What a round logs: turns and calls, responses that were lost, groups of one, rewards that are no numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from keyekit.objectives.policy.groups import informative_groups
from keyekit.rewards.base import RewardOutcome
from keyekit.rollout.experience import ScoredResponse
from keyekit.rollout.meters import Tally, response_meters, round_meters
from keyekit.rollout.trajectory import Interjection, Trajectory


def test_means_are_over_all_and_bad_rewards_are_counted(prompt_maker) -> None:
    prompt = prompt_maker("p", 5)
    plain = Trajectory(
        prompt=prompt, tokens=(7,), log_probabilities=(-1.0,), sampling_log_probabilities=(-1.0,), end="length"
    )
    calls = [("shown", False), ("bad_call", True), ("forbidden", True)]
    reads = [Interjection(after=0, tokens=(9,), kind="tool", reason=reason, failed=bad) for reason, bad in calls]
    asked = Interjection(after=0, tokens=(9,), kind="correction")
    several = replace(plain, end="repetition", interjections=(*reads, asked))
    rewards = [1.0, math.inf, math.nan, 0.5]
    tally = Tally()
    tally.answer(2, 4, [RewardOutcome(1.0, "right"), *[RewardOutcome.cannot_read("no integer")] * 3])
    tally.add(informative_groups(torch.tensor(rewards), torch.tensor([0, 0, 0, 1])))
    tally.attempt([1.0, math.nan, 0.0])
    found = round_meters(
        [ScoredResponse(t, reward, 0.0, {}) for t, reward in zip([plain, plain, plain, several], rewards, strict=True)],
        tally,
    )
    assert found["reward"] == 0.75  # of the two that are numbers
    assert found["broken_rewards"] == 0.5
    assert found["lonely_groups"] == 1.0  # in both there is but one reward that is a number
    assert found["lost_responses"] == 0.5
    assert found["unreadable"] == 0.75
    assert (found["cut_off"], found["repetitive"]) == (0.75, 0.25)
    assert (found["turns"], found["calls"]) == (2.0, 0.75)
    assert found["failed_calls"] == pytest.approx(2 / 3)
    assert (found["calls/shown"], found["calls/forbidden"], found["calls/bad_call"]) == (0.25, 0.25, 0.25)
    assert (found["second_attempts"], found["second_attempt_reward"]) == (3.0, 0.5)


def test_without_tools_nothing_is_said_about_them(prompt_maker) -> None:
    found = round_meters([], Tally())
    assert not {"turns", "calls", "lost_responses", "second_attempts"} & set(found)
    assert found["reward"] == found["unreadable"] == found["broken_rewards"] == 0.0


def test_broken_rewards_are_a_share_of_all_that_were_given(prompt_maker) -> None:
    """Second attempts among them, which count in no other mean."""
    tally = Tally()
    tally.add(informative_groups(torch.tensor([1.0, math.nan, math.nan, math.nan]), torch.tensor([0, 0, 1, 1])))
    one = Trajectory(
        prompt=prompt_maker("p", 5),
        tokens=(7,),
        log_probabilities=(-1.0,),
        sampling_log_probabilities=(-1.0,),
        end="length",
    )
    assert round_meters([ScoredResponse(one, math.nan, 0.0, {})] * 2, tally)["broken_rewards"] == 0.75


def test_where_every_response_is_lost_all_of_them_are() -> None:
    assert response_meters([], 4) == {"response_tokens": 0.0, "cut_off": 0.0, "lost_responses": 1.0}
