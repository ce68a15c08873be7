"""A round of rollouts: prompts answered, rewarded, compared within their groups, and divided into optimizer steps."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from keyekit.data.sample import Sample
from keyekit.objectives.policy.advantages import Advantages
from keyekit.objectives.policy.groups import informative_groups, prompts_to_sample
from keyekit.rollout.engine import RolloutEngine
from keyekit.rollout.experience import ScoredResponse
from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["Judgement", "Round", "Rounds", "divide"]


class Judgement(Protocol):
    """What a reward says about one response."""

    @property
    def value(self) -> float:
        """The reward."""
        ...

    @property
    def parts(self) -> dict[str, float]:
        """The reward by parts, for the log."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round brought on this rank.

    Args:
        groups: For each prompt that teaches something, its responses.
        meters: Numbers to log.
    """

    groups: list[list[ScoredResponse]]
    meters: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """Makes rounds of rollouts with the policy as it is.

    Args:
        engine: Answers prompts.
        judge: Rewards responses, given their samples and texts.
        compare: Turns ``[R]`` rewards and ``[R]`` groups into advantages, as the objective's paper does.
        decode: Turns tokens into text.
        prompts: Prompts of a round on this rank.
        responses: Responses to each.
        oversampling: Up to so many times the prompts are asked until enough groups are left: those without variance teach
            nothing (2.0 sheet 10.1). 1 asks for no more.
        keep_flat: Whether groups without variance are kept, as plain GRPO does: they have no gradient but count in means.
    """

    engine: RolloutEngine
    judge: Callable[[Sequence[Sample], Sequence[str]], Sequence[Judgement]]
    compare: Callable[[torch.Tensor, torch.Tensor], Advantages]
    decode: Callable[[list[int]], str]
    prompts: int
    responses: int
    oversampling: float = 1.0
    keep_flat: bool = False

    def make(self, draw: Iterator[Prompt], seed: int) -> Round:
        """One round.

        Args:
            draw: Where prompts come from; as many are taken as are asked.
            seed: Seed of the responses.
        """
        groups: list[list[ScoredResponse]] = []
        everything: list[ScoredResponse] = []
        tally = {"groups": 0.0, "flat_groups": 0.0, "broken_rewards": 0.0}
        limit = max(int(self.prompts * self.oversampling), self.prompts)
        wanted = self.prompts
        while wanted and tally["groups"] < limit:
            asked = [prompt for _, prompt in zip(range(wanted), draw, strict=False)]
            if not asked:
                break
            found = self._answered(asked, seed + int(tally["groups"]))
            rewards, names = _rewards(found)
            choice = informative_groups(rewards, names)
            tally["groups"] += choice.num_groups
            tally["flat_groups"] += choice.num_flat
            tally["broken_rewards"] += choice.num_broken
            compared = self._compared(found, rewards, names)
            everything += [response for group in compared for response in group]
            kept = choice.kept if not self.keep_flat else rewards.isfinite()
            groups += [group for group in _kept(compared, kept) if group]
            missing = max(self.prompts - len(groups), 0)
            share = 1 - (tally["flat_groups"] / max(tally["groups"], 1.0))
            left = limit - int(tally["groups"])
            wanted = min(prompts_to_sample(missing, share, limit), left) if self.oversampling > 1 and left > 0 else 0
        return Round(groups=groups[: self.prompts], meters=_meters(everything, tally))

    def _answered(self, prompts: list[Prompt], seed: int) -> list[list[tuple[Trajectory, Judgement]]]:
        answered = self.engine.rollout(prompts, self.responses, seed)
        flat = [trajectory for group in answered for trajectory in group]
        texts = [self.decode(list(trajectory.answer)) for trajectory in flat]
        judged = iter(self.judge([trajectory.prompt.encoded.sample for trajectory in flat], texts))
        return [[(trajectory, next(judged)) for trajectory in group] for group in answered]

    def _compared(
        self, found: list[list[tuple[Trajectory, Judgement]]], rewards: torch.Tensor, names: torch.Tensor
    ) -> list[list[ScoredResponse]]:
        advantages = iter(self.compare(rewards, names).values.tolist())
        return [
            [ScoredResponse(t, float(judged.value), next(advantages), dict(judged.parts)) for t, judged in group]
            for group in found
        ]


def divide(groups: Sequence[list[ScoredResponse]], steps: int, packs: int) -> list[list[list[ScoredResponse]]]:
    """Divide the groups of a round into optimizer steps, and the responses of each into packs of about equal length.

    Args:
        groups: Responses to each prompt; a group stays within one step.
        steps: Optimizer steps.
        packs: Packs of each, on this rank.

    Returns:
        For each step its packs; some may be empty.
    """
    divided = []
    for step in range(steps):
        responses = [response for group in groups[step::steps] for response in group]
        loads: list[tuple[int, int]] = [(0, place) for place in range(packs)]
        filled: list[list[ScoredResponse]] = [[] for _ in range(packs)]
        for response in sorted(responses, key=_length, reverse=True):
            load, place = heapq.heappop(loads)
            filled[place].append(response)
            heapq.heappush(loads, (load + _length(response), place))
        divided.append(filled)
    return divided


def _length(response: ScoredResponse) -> int:
    return len(response.trajectory.prompt) + len(response.trajectory.tokens) - 1


def _rewards(found: list[list[tuple[Trajectory, Judgement]]]) -> tuple[torch.Tensor, torch.Tensor]:
    rewards = torch.tensor([float(judged.value) for group in found for _, judged in group])
    return rewards, torch.tensor([number for number, group in enumerate(found) for _ in group])


def _kept(groups: list[list[ScoredResponse]], kept: torch.Tensor) -> list[list[ScoredResponse]]:
    flags = iter(kept.tolist())
    return [[response for response in group if next(flags)] for group in groups]


def _meters(responses: list[ScoredResponse], tally: dict[str, float]) -> dict[str, float]:
    """Means over all responses of the round, those that teach nothing included."""
    count = max(len(responses), 1)
    sound = [response for response in responses if response.reward == response.reward]
    meters = {
        "reward": sum(response.reward for response in sound) / max(len(sound), 1),
        "response_tokens": sum(len(response.trajectory.tokens) for response in responses) / count,
        "cut_off": sum(response.trajectory.end == "length" for response in responses) / count,
        "repetitive": sum(response.trajectory.end == "repetition" for response in responses) / count,
        "flat_groups": tally["flat_groups"] / max(tally["groups"], 1.0),
        "broken_rewards": tally["broken_rewards"] / count,
    }
    for name in sorted({name for response in responses for name in response.parts}):
        known = [response.parts[name] for response in responses if name in response.parts]
        meters[f"reward_of/{name}"] = sum(known) / len(known)
    return meters
