"""Advantages: how much better an answer is than what else was answered to the same prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from keyekit.batch import Segments
from keyekit.objectives.sequences import sequence_ids, sequence_sums

__all__ = ["Advantages", "Baseline", "Scale", "group_advantages", "returns_to_go", "whiten"]

Baseline = Literal["mean", "leave_one_out", "batch", "none"]
"""What is taken off a reward: its group's mean, the mean of the *others* of its group, that of all rewards, or nothing."""

Scale = Literal["group", "batch", "none"]
"""What it is divided by: the standard deviation of its group, of all advantages, or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantages:
    """Advantages of R answers.

    Args:
        values: ``[R]`` finite; 0 where nothing can be said.
        kept: ``[R]`` bool, false for answers that must not be trained on: narrow the mask with
            :meth:`~keyekit.objectives.policy.base.Rollouts.keep`.
        num_broken: Answers whose reward is NaN or infinite.
        num_alone: Answers with a sound reward that have nobody to be compared with: a group of one, or what broken rewards
            left of a group.
    """

    values: Tensor
    kept: Tensor
    num_broken: int
    num_alone: int


def group_advantages(
    rewards: Tensor, groups: Tensor, baseline: Baseline = "mean", scale: Scale = "group", epsilon: float = 1e-6
) -> Advantages:
    """Compare every answer with the others of its group.

    Rewards that are no number, or infinite, are left out of every mean and are never trained on. Rewards live on the host,
    where the reward functions leave them; this is no code for the device.

    Args:
        rewards: ``[R]``.
        groups: ``[R]`` integers, equal for answers to the same prompt; groups may differ in size.
        baseline: See :data:`Baseline`.
        scale: See :data:`Scale`; standard deviations have the divisor ``n - 1``.
        epsilon: Added to the standard deviation, so that equal rewards get an advantage of 0.

    Returns:
        Advantages in float32 (float64 for float64 rewards).

    Raises:
        ValueError: If the shapes differ or an argument is unknown.

    Example:
        >>> rewards, groups = torch.tensor([1.0, 0.0, 0.0, 3.0, float("nan")]), torch.tensor([7, 7, 7, 8, 8])
        >>> found = group_advantages(rewards, groups, baseline="leave_one_out", scale="none")
        >>> found.values.tolist(), found.num_broken, found.num_alone
        ([1.0, -0.5, -0.5, 0.0, 0.0], 1, 1)
    """
    if rewards.dim() != 1 or rewards.shape != groups.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must be one number each per answer"
        )
    if baseline not in ("mean", "leave_one_out", "batch", "none"):
        raise ValueError(f"baseline={baseline!r}: choose mean, leave_one_out, batch or none")
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"scale={scale!r}: choose group, batch or none")
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))
    sound = rewards.isfinite()
    rewards = torch.where(sound, rewards, 0)
    members = _Groups(groups, sound)
    compares = baseline in ("mean", "leave_one_out") or scale == "group"
    alone = sound & (members.sizes < 2) if compares else torch.zeros_like(sound)
    kept = sound & ~alone
    values = rewards - _baseline(rewards, members, baseline)
    if scale == "group":
        values = values / (members.deviations(rewards) + epsilon)
    values = torch.where(kept, values, 0)
    if scale == "batch" and kept.sum() > 1:
        values = torch.where(kept, values / (values[kept].std() + epsilon), 0)
    return Advantages(values=values, kept=kept, num_broken=int((~sound).sum()), num_alone=int(alone.sum()))


def returns_to_go(rewards: Tensor, penalties: Tensor, mask: Tensor, segments: Segments) -> Tensor:
    """Reward of the answer less the penalties from each token on: the return when every token's divergence costs something.

    REINFORCE++ (arXiv:2501.03262) puts the divergence from the reference into the reward, token by token, not into the loss.

    Args:
        rewards: ``[B]`` reward of each sequence, due at its last token.
        penalties: ``[T]``, such as ``beta * k1``; what is outside the mask does not count.
        mask: ``[T]`` bool, the tokens of answers.
        segments: The sequences.

    Returns:
        ``[T]``, 0 outside the mask.

    Example:
        >>> everything, one = torch.ones(3, dtype=torch.bool), Segments.of([3])
        >>> returns_to_go(torch.tensor([1.0]), torch.tensor([0.5, 0.0, 0.25]), everything, one).tolist()
        [0.25, 0.75, 0.75]
    """
    costs = torch.where(mask, penalties, 0).double()  # differences of running sums: float32 would lose the small ones
    ids = sequence_ids(segments)
    before = costs.cumsum(0) - costs
    starts = torch.cat([before, costs.sum()[None]])[segments.offsets[:-1].long()]
    remaining = sequence_sums(costs, segments)[ids] - (before - starts[ids])
    return torch.where(mask, rewards[ids] - remaining.to(rewards.dtype), 0)


def whiten(
    values: Tensor, mask: Tensor, epsilon: float = 1e-6, add_up: Callable[[Tensor], Tensor] = lambda own: own
) -> Tensor:
    """Shift and scale the masked values of a batch to mean 0 and standard deviation 1; the others become 0.

    Args:
        values: Of any shape.
        mask: Bool, of the same shape.
        epsilon: Added to the standard deviation.
        add_up: Adds a number of this rank's to those of the others, if the batch lies on several.

    Example:
        >>> whiten(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
        tensor([-0.7071,  0.7071,  0.0000])
    """
    counts = add_up(mask.sum())
    mean = add_up(torch.where(mask, values, 0).sum()) / counts.clamp(min=1)
    centred = torch.where(mask, values - mean, 0)
    return centred / ((add_up(centred.square().sum()) / (counts - 1).clamp(min=1)).sqrt() + epsilon)


class _Groups:
    """Sums over the sound rewards of groups of any size."""

    def __init__(self, groups: Tensor, sound: Tensor) -> None:
        names, self._inverse = groups.unique(return_inverse=True)
        self._number = len(names)
        self._sound = sound
        self.sizes = self.sums(torch.ones(len(groups)))

    def sums(self, values: Tensor) -> Tensor:
        """For each answer the sum over its group, ``[R]``."""
        values = torch.where(self._sound, values, 0)
        return values.new_zeros(self._number).index_add(0, self._inverse, values)[self._inverse]

    def mean_of_all(self, values: Tensor) -> Tensor:
        return torch.where(self._sound, values, 0).sum() / self._sound.sum().clamp(min=1)

    def means(self, values: Tensor) -> Tensor:
        return self.sums(values) / self.sizes.clamp(min=1)

    def deviations(self, values: Tensor) -> Tensor:
        squares = self.sums((values - self.means(values)).square())
        return (squares / (self.sizes - 1).clamp(min=1)).sqrt()


def _baseline(rewards: Tensor, members: _Groups, baseline: Baseline) -> Tensor:
    if baseline == "none":
        return torch.zeros_like(rewards)
    if baseline == "batch":
        return members.mean_of_all(rewards).expand_as(rewards)
    if baseline == "mean":
        return members.means(rewards)
    return (members.sums(rewards) - rewards) / (members.sizes - 1).clamp(min=1)
