"""What a round logs: turns and calls, responses that were lost, groups of one, rewards that are no numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from keyekit.objectives.policy.groups import informative_groups
from keyekit.rollout.experience import ScoredResponse
from keyekit.rollout.meters import Tally, round_meters
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
    tally = Tally(asked=3, lost=4)
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
    assert (found["cut_off"], found["repetitive"]) == (0.75, 0.25)
    assert (found["turns"], found["calls"]) == (2.0, 0.75)
    assert found["failed_calls"] == pytest.approx(2 / 3)
    assert (found["calls/shown"], found["calls/forbidden"], found["calls/bad_call"]) == (0.25, 0.25, 0.25)
    assert (found["second_attempts"], found["second_attempt_reward"]) == (3.0, 0.5)


def test_without_tools_nothing_is_said_about_them(prompt_maker) -> None:
    found = round_meters([], Tally())
    assert not {"turns", "calls", "lost_responses", "second_attempts"} & set(found)
    assert found["reward"] == 0.0
