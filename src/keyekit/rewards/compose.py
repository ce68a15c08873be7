"""Rewards made of rewards: weighted sums, gates that multiply, and second opinions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from keyekit.data.sample import Sample
from keyekit.rewards.base import Example, Reward, RewardOutcome

__all__ = ["Fallback", "Gate", "WeightedSum"]


class WeightedSum(Reward):
    """Several rewards, each with its weight.

    Thyme's reward, the proxy for Keye-VL 8B (sheet 5.6), is ``result + 0.5 consistency + 0.5 format`` where consistency counts
    only for right results: ``WeightedSum([result, Gate(result, consistency), form], [1.0, 0.5, 0.5])``. An answer that any
    part drops is dropped.

    Args:
        rewards: The parts.
        weights: A weight for each; 1 each by default. A penalty already is negative.
        names: What the log calls the parts; their class names by default, numbered where they repeat.

    Raises:
        ValueError: If there are no parts, or not as many weights or names.
    """

    def __init__(
        self, rewards: list[Reward], weights: list[float] | None = None, names: list[str] | None = None
    ) -> None:
        weights = [1.0] * len(rewards) if weights is None else weights
        names = _class_names(rewards) if names is None else names
        if not rewards or not len(rewards) == len(weights) == len(set(names)) == len(names):
            raise ValueError(
                f"{len(rewards)} rewards, {len(weights)} weights, names {names}: give at least one reward, a weight and a "
                "name of its own for each"
            )
        self.rewards = rewards
        self.weights = weights
        self.names = names

    def outcomes(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :class:`~keyekit.rewards.base.Reward`."""
        columns = [reward.score(samples, answers) for reward in self.rewards]
        return [self._sum(row) for row in zip(*columns, strict=True)]

    def _sum(self, row: Sequence[RewardOutcome]) -> RewardOutcome:
        reason = ", ".join(f"{name}: {outcome.reason}" for name, outcome in zip(self.names, row, strict=True))
        if any(outcome.dropped for outcome in row):
            return RewardOutcome.drop(reason)
        parts: dict[str, float] = {}
        for name, outcome in zip(self.names, row, strict=True):
            parts |= _nested(name, outcome)
        value = sum(weight * outcome.value for weight, outcome in zip(self.weights, row, strict=True))
        return RewardOutcome(value, reason, parts, unreadable=any(outcome.unreadable for outcome in row))

    @classmethod
    def example(cls) -> Example:
        """What the first part has to tell apart; the suite builds a sum of one."""
        from keyekit.rewards.counting import Counting

        return Counting.example()


class Gate(Reward):
    """One reward times another: format and mode gates, such as a correct answer that counts only in the right shape.

    What the gate gives 0 is not shown to the other reward, which saves the time of judges and sandboxes.

    Args:
        gate: The factor, such as :class:`~keyekit.rewards.formats.ResponseFormat`.
        reward: What counts behind the gate.
    """

    def __init__(self, gate: Reward, reward: Reward) -> None:
        self.gate = gate
        self.reward = reward

    def outcomes(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :class:`~keyekit.rewards.base.Reward`."""
        gates = self.gate.score(samples, answers)
        open_places = [place for place, gate in enumerate(gates) if gate.value and not gate.dropped]
        behind = self.reward.score([samples[place] for place in open_places], [answers[place] for place in open_places])
        found = dict(zip(open_places, behind, strict=True))
        return [self._product(gate, found.get(place)) for place, gate in enumerate(gates)]

    def _product(self, gate: RewardOutcome, reward: RewardOutcome | None) -> RewardOutcome:
        if gate.dropped:
            return gate
        if reward is None:
            return RewardOutcome(0.0, f"gate: {gate.reason}", _nested("gate", gate), unreadable=gate.unreadable)
        if reward.dropped:
            return reward
        parts = {**_nested("gate", gate), **_nested("reward", reward)}
        return replace(reward, value=gate.value * reward.value, parts=parts)

    @classmethod
    def example(cls) -> Example:
        """A right answer in the right shape against one without it."""
        from keyekit.rewards.counting import Counting

        sample = Counting.example().sample
        return Example(sample=sample, right="<think>two and one</think><answer>3</answer>", wrong="<think>3")


class Fallback(Reward):
    """A second opinion where the first is not above a value, as a judge behind symbolic mathematics (2.0 sheet 10.4).

    Args:
        first: Asked about every answer.
        second: Asked where the first gives at most ``satisfied`` or drops the answer; its outcome is taken then.
        satisfied: Values above need no second opinion.
    """

    def __init__(self, first: Reward, second: Reward, satisfied: float = 0.0) -> None:
        self.first = first
        self.second = second
        self.satisfied = satisfied

    def outcomes(self, samples: Sequence[Sample], answers: Sequence[str]) -> list[RewardOutcome]:
        """See :class:`~keyekit.rewards.base.Reward`."""
        outcomes = list(self.first.score(samples, answers))
        places = [place for place, one in enumerate(outcomes) if one.dropped or one.value <= self.satisfied]
        again = self.second.score([samples[place] for place in places], [answers[place] for place in places])
        for place, outcome in zip(places, again, strict=True):
            outcomes[place] = outcome
        return outcomes

    @classmethod
    def example(cls) -> Example:
        """What the first opinion cannot read but the second can."""
        from keyekit.rewards.counting import Counting

        return Counting.example()


def _class_names(rewards: Sequence[Reward]) -> list[str]:
    names = [type(reward).__name__ for reward in rewards]
    return [name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)]


def _nested(name: str, outcome: RewardOutcome) -> dict[str, float]:
    return {name: outcome.value, **{f"{name}/{part}": value for part, value in outcome.parts.items()}}
