"""What a round of rollouts logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

from keyekit.objectives.policy.groups import GroupChoice
from keyekit.rewards.base import Judgement
from keyekit.rollout.experience import ScoredResponse
from keyekit.rollout.trajectory import Interjection, Trajectory

__all__ = ["Tally", "response_meters", "round_meters"]


@dataclass(slots=True)
class Tally:
    """Counts of one round.

    Args:
        asked: Prompts asked, second attempts aside.
        groups: Groups of responses.
        flat: Groups whose rewards are all the same.
        alone: Groups with fewer than two sound rewards.
        rewarded: Responses that were rewarded, second attempts and those with hints included.
        broken: Those of them whose reward is no finite number.
        lost: Responses that the engine was asked for and did not give.
        unreadable: Responses that could not be read; without second attempts and hints, as those before.
        attempts: Rewards of second attempts.
        hard: Groups without a right answer, before hints.
        helped: Those that a hint brought one.
    """

    asked: int = 0
    groups: int = 0
    flat: int = 0
    alone: int = 0
    rewarded: int = 0
    broken: int = 0
    lost: int = 0
    unreadable: int = 0
    attempts: list[float] = field(default_factory=list)
    hard: int = 0
    helped: int = 0

    @property
    def share(self) -> float:
        """Share of the groups that teach something."""
        return 1 - self.flat / max(self.groups, 1)

    def answer(self, prompts: int, responses: int, judgements: Sequence[Judgement]) -> None:
        """Count the answers of one call.

        Args:
            prompts: How many were asked.
            responses: How many answers each was to get.
            judgements: On every answer there is.
        """
        self.asked += prompts
        self.lost += prompts * responses - len(judgements)
        self.unreadable += sum(judgement.unreadable for judgement in judgements)

    def add(self, choice: GroupChoice) -> None:
        """Count the groups of one call."""
        self.rewarded += len(choice.kept)
        self.groups += choice.num_groups
        self.flat += choice.num_flat
        self.alone += choice.num_alone
        self.broken += choice.num_broken

    def attempt(self, rewards: Sequence[float]) -> None:
        """Count second attempts."""
        self.attempts += rewards


def response_meters(trajectories: Sequence[Trajectory], lost: int) -> dict[str, float]:
    """What is logged of responses whatever they are for.

    Args:
        trajectories: Those there are.
        lost: How many more the engine was asked for.
    """
    count = max(len(trajectories), 1)
    meters = {
        "response_tokens": sum(len(one.tokens) for one in trajectories) / count,
        "cut_off": sum(one.end == "length" for one in trajectories) / count,
    }
    return meters | ({"lost_responses": lost / (len(trajectories) + lost)} if lost else {})


def round_meters(responses: Sequence[ScoredResponse], tally: Tally) -> dict[str, float]:
    """Means over all responses of a round, those that teach nothing included.

    Args:
        responses: All of them.
        tally: What was counted on the way.
    """
    count = max(len(responses), 1)
    sound = [response for response in responses if isfinite(response.reward)]
    meters = response_meters([response.trajectory for response in responses], tally.lost) | {
        "reward": sum(response.reward for response in sound) / max(len(sound), 1),
        "repetitive": sum(response.trajectory.end == "repetition" for response in responses) / count,
        "flat_groups": tally.flat / max(tally.groups, 1),
        "lonely_groups": tally.alone / max(tally.groups, 1),
        "broken_rewards": tally.broken / max(tally.rewarded, 1),
        "unreadable": tally.unreadable / count,
    }
    if tally.attempts:
        known = [reward for reward in tally.attempts if isfinite(reward)]
        meters["second_attempts"] = float(len(tally.attempts))
        meters["second_attempt_reward"] = sum(known) / max(len(known), 1)
    if tally.helped:
        meters["helped_groups"] = tally.helped / tally.hard
    meters |= _turns([response.trajectory.interjections for response in responses])
    for name in sorted({name for response in responses for name in response.parts}):
        known = [response.parts[name] for response in responses if name in response.parts]
        meters[f"reward_of/{name}"] = sum(known) / len(known)
    return meters


def _turns(replies: Sequence[tuple[Interjection, ...]]) -> dict[str, float]:
    """Turns and calls of tools per response, and the share of calls that went wrong; nothing where nobody replied."""
    if not any(replies):
        return {}
    calls = [read for reads in replies for read in reads if read.kind == "tool"]
    reasons = Counter(read.reason for read in calls)
    return {
        "turns": 1 + sum(map(len, replies)) / len(replies),
        "calls": len(calls) / len(replies),
        "failed_calls": sum(read.failed for read in calls) / max(len(calls), 1),
        **{f"calls/{reason}": number / len(replies) for reason, number in sorted(reasons.items())},
    }
