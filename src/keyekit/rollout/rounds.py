"""A round of rollouts: prompts answered, rewarded, compared within their groups, and divided into optimizer steps."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from keyekit.data.sample import Sample
from keyekit.objectives.policy.advantages import Advantages
from keyekit.objectives.policy.groups import informative_groups, prompts_to_sample
from keyekit.rewards.base import Judgement
from keyekit.rollout.engine import RolloutEngine
from keyekit.rollout.experience import ScoredResponse
from keyekit.rollout.meters import Tally, round_meters
from keyekit.rollout.second_attempts import SecondAttempts, judged_sample
from keyekit.rollout.trajectory import Prompt, Trajectory

__all__ = ["Round", "RoundMaker", "Rounds", "divide", "pack_length", "packs_needed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round brought on this rank.

    Args:
        groups: For each prompt that teaches something, its responses.
        meters: Numbers to log.
    """

    groups: list[list[ScoredResponse]]
    meters: dict[str, float]


class RoundMaker(ABC):
    """Base of what makes rounds: an engine answers prompts with the weights of one moment.

    Args:
        engine: Answers prompts.
        prompts: Prompts of a round on this rank.
        responses: Responses to each.
    """

    __slots__ = ()
    engine: RolloutEngine
    prompts: int
    responses: int

    def make(self, draw: Iterator[Prompt], seed: int) -> Round:
        """One round; the engine takes note of the weights first, on all ranks together.

        Args:
            draw: Where prompts come from; as many are taken as are asked.
            seed: Seed of the responses.
        """
        self.engine.prepare()
        return self._made(draw, seed)

    @abstractmethod
    def _made(self, draw: Iterator[Prompt], seed: int) -> Round:
        """See :meth:`make`; the engine is prepared."""

    @staticmethod
    def _drawn(draw: Iterator[Prompt], most: int) -> list[Prompt]:
        return [prompt for _, prompt in zip(range(most), draw, strict=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds(RoundMaker):
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
        second: Asks again where every answer to a prompt is wrong (2.0 sheet 10.3); ``None`` does not. The new answers are a
            group of their own.
        hint: The prompt with the hint of a level behind its question, ``None`` if there is no such hint. Where every answer is
            wrong, hints are given until one is right, and that group is learnt from (8B sheet 5.8). ``None`` gives none.
    """

    engine: RolloutEngine
    judge: Callable[[Sequence[Sample], Sequence[str]], Sequence[Judgement]]
    compare: Callable[[torch.Tensor, torch.Tensor], Advantages]
    decode: Callable[[list[int]], str]
    prompts: int
    responses: int
    oversampling: float = 1.0
    keep_flat: bool = False
    second: SecondAttempts | None = None
    hint: Callable[[Prompt, int], Prompt | None] | None = None

    def _made(self, draw: Iterator[Prompt], seed: int) -> Round:
        groups: list[list[ScoredResponse]] = []
        everything: list[ScoredResponse] = []
        tally = Tally()
        limit = max(int(self.prompts * self.oversampling), self.prompts)
        wanted = self.prompts
        while wanted and tally.asked < limit:
            asked = self._drawn(draw, wanted)
            if not asked:
                break
            found = self._answered(asked, self.responses, seed + tally.asked)
            tally.answer(len(asked), self.responses, [one.judgement for group in found for one in group])
            found += self._again(found, seed + tally.asked, tally) + self._hinted(found, seed + tally.asked, tally)
            found = [group for group in found if group]  # an engine may have lost all of one
            if not found:
                continue
            rewards, names = _rewards(found)
            choice = informative_groups(rewards, names)
            tally.add(choice)
            compared = self._compared(found, rewards, names)
            everything += [response for group in compared for response in group if not _was_helped(response)]
            kept = choice.kept if not self.keep_flat else rewards.isfinite()
            groups += [group for group in _kept(compared, kept) if group]
            missing = max(self.prompts - len(groups), 0)
            left = limit - tally.asked
            wanted = (
                min(prompts_to_sample(missing, tally.share, limit), left) if self.oversampling > 1 and left > 0 else 0
            )
        return Round(groups=groups[: self.prompts], meters=round_meters(everything, tally))

    def _answered(self, prompts: Sequence[Prompt], responses: int, seed: int) -> list[list[_Judged]]:
        answered = self.engine.rollout(prompts, responses, seed)
        flat = [trajectory for group in answered for trajectory in group]
        if not flat:
            return [[] for _ in prompts]
        texts = [self.decode(list(trajectory.answer)) for trajectory in flat]
        samples = [judged_sample(trajectory, self.decode) for trajectory in flat]
        judged = iter(zip(samples, texts, self.judge(samples, texts), strict=True))
        return [[_Judged(trajectory, *next(judged)) for trajectory in group] for group in answered]

    def _again(self, found: list[list[_Judged]], seed: int, tally: Tally) -> list[list[_Judged]]:
        """A group of second attempts for each group that is all wrong, as far as there are reports."""
        if self.second is None:
            return []
        answered = [[(one.sample, one.text, one.judgement) for one in group] for group in found]
        asked = self.second.prompts(answered)
        flat = [prompt for group in asked for prompt in group]
        if not flat:
            return []
        answers = iter(self._answered(flat, 1, seed))
        again = [[one for _ in group for one in next(answers)] for group in asked]
        tally.attempt([one.judgement.value for group in again for one in group])
        return again

    def _hinted(self, found: list[list[_Judged]], seed: int, tally: Tally) -> list[list[_Judged]]:
        """Groups of answers to hinted prompts, each with the weakest hint by which one was right."""
        hard = [group[0].trajectory.prompt for group in found if group and not _any_right(group)]
        tally.hard += len(hard)
        helped: list[list[_Judged]] = []
        level = 0
        while self.hint is not None and hard:
            hinted = [(prompt, self.hint(prompt, level)) for prompt in hard]
            asked = [(prompt, with_hint) for prompt, with_hint in hinted if with_hint is not None]
            answers = self._answered([with_hint for _, with_hint in asked], self.responses, seed) if asked else []
            right = [_any_right(group) for group in answers]
            helped += [group for group, is_right in zip(answers, right, strict=True) if is_right]
            hard = [prompt for (prompt, _), is_right in zip(asked, right, strict=True) if not is_right]
            level += 1
        tally.helped += len(helped)
        return helped

    def _compared(
        self, found: list[list[_Judged]], rewards: torch.Tensor, names: torch.Tensor
    ) -> list[list[ScoredResponse]]:
        advantages = iter(self.compare(rewards, names).values.tolist())
        return [
            [
                ScoredResponse(one.trajectory, float(one.judgement.value), next(advantages), dict(one.judgement.parts))
                for one in group
            ]
            for group in found
        ]


class _Judged(NamedTuple):
    """A response with the sample and the text that were judged."""

    trajectory: Trajectory
    sample: Sample
    text: str
    judgement: Judgement


def _any_right(group: Sequence[_Judged]) -> bool:
    """Whether an answer is worth something, or what it is worth is not known."""
    return any(not one.judgement.value <= 0 for one in group)


def _was_helped(response: ScoredResponse) -> bool:
    """Whether it answers a prompt with a hint or a report: it counts in the meters of those alone."""
    return "origin" in response.trajectory.prompt.encoded.sample.meta


def divide(
    groups: Sequence[list[ScoredResponse]], steps: int, packs: int, most: int | None = None
) -> list[list[list[ScoredResponse]]]:
    """Divide the groups of a round into optimizer steps, and the responses of each into packs of about equal length.

    Args:
        groups: Responses to each prompt; a group stays within one step.
        steps: Optimizer steps.
        packs: Packs of each, on this rank.
        most: Tokens that no pack should exceed: lengths may differ for that. Where it cannot be had they are about equal.

    Returns:
        For each step its packs; some may be empty.
    """
    divided = []
    for step in range(steps):
        responses = sorted((one for group in groups[step::steps] for one in group), key=_length, reverse=True)
        filled = _balanced(responses, packs)
        if most is not None and max(map(pack_length, filled)) > most:
            fitted = _fitted(responses, most)
            filled = filled if len(fitted) > packs else [*fitted, *([] for _ in range(packs - len(fitted)))]
        divided.append(filled)
    return divided


def packs_needed(steps: Sequence[Sequence[Sequence[ScoredResponse]]], most: int) -> int:
    """Packs in which the responses of every step have no more tokens than they should.

    Args:
        steps: Of a round, each with its packs.
        most: Tokens of a pack; no response may have more.
    """
    ordered = [sorted((one for pack in step for one in pack), key=_length, reverse=True) for step in steps]
    return max((len(_fitted(responses, most)) for responses in ordered), default=0)


def pack_length(responses: Sequence[ScoredResponse]) -> int:
    """Tokens of responses side by side, with their prompts."""
    return sum(map(_length, responses))


def _balanced(responses: Sequence[ScoredResponse], packs: int) -> list[list[ScoredResponse]]:
    """Each response, the longest first, in the pack that is the shortest."""
    loads: list[tuple[int, int]] = [(0, place) for place in range(packs)]
    filled: list[list[ScoredResponse]] = [[] for _ in range(packs)]
    for response in responses:
        load, place = heapq.heappop(loads)
        filled[place].append(response)
        heapq.heappush(loads, (load + _length(response), place))
    return filled


def _fitted(responses: Sequence[ScoredResponse], most: int) -> list[list[ScoredResponse]]:
    """Each response, the longest first, in the first pack that has room, or else in a new one."""
    filled: list[list[ScoredResponse]] = []
    for response in responses:
        room = (pack for pack in filled if pack_length(pack) + _length(response) <= most)
        pack = next(room, None)
        if pack is None:
            filled.append([response])
        else:
            pack.append(response)
    return filled


def _length(response: ScoredResponse) -> int:
    return len(response.trajectory)


def _rewards(found: list[list[_Judged]]) -> tuple[torch.Tensor, torch.Tensor]:
    rewards = torch.tensor([float(one.judgement.value) for group in found for one in group])
    names = torch.tensor([number for number, group in enumerate(found) for _ in group], dtype=torch.int64)
    return rewards, names


def _kept(groups: list[list[ScoredResponse]], kept: torch.Tensor) -> list[list[ScoredResponse]]:
    flags = iter(kept.tolist())
    return [[response for response in group if next(flags)] for group in groups]
