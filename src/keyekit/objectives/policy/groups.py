"""Rules on groups of answers: which are worth training on, and how many prompts to ask for enough of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GroupChoice", "informative_groups", "prompts_to_sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupChoice:
    """Which answers belong to groups that teach something.

    Args:
        kept: ``[R]`` bool.
        num_groups: Groups there were.
        num_kept: Groups that teach something.
        num_flat: Groups whose answers all have the same reward: every advantage is 0.
        num_alone: Groups with fewer than two sound rewards.
        num_broken: Answers whose reward is NaN or infinite; they do not count in their group.
    """

    kept: Tensor
    num_groups: int
    num_kept: int
    num_flat: int
    num_alone: int
    num_broken: int

    @property
    def kept_share(self) -> float:
        """Share of the groups that teach something; 0 if there are none."""
        return self.num_kept / max(self.num_groups, 1)


def informative_groups(rewards: Tensor, groups: Tensor, tolerance: float = 1e-6) -> GroupChoice:
    """Drop groups without variance, as DAPO's dynamic sampling and Keye-VL-2.0 do (2.0 sheet 10.1).

    A prompt that is always or never solved has advantages of 0: it costs a training pass and thins out the batch.

    Args:
        rewards: ``[R]``.
        groups: ``[R]`` integers, equal for answers to the same prompt.
        tolerance: Largest difference of rewards in a group that counts as none.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> choice = informative_groups(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
        >>> choice.kept.tolist(), choice.num_flat, choice.kept_share
        ([False, False, True, True], 1, 0.5)
    """
    if rewards.dim() != 1 or rewards.shape != groups.shape:
        raise ValueError(
            f"rewards {tuple(rewards.shape)} and groups {tuple(groups.shape)} must be one number each per answer"
        )
    sound = rewards.isfinite()
    names, inverse = groups.unique(return_inverse=True)
    sizes = torch.zeros(len(names)).index_add(0, inverse, sound.float())
    lowest, highest = (
        rewards.new_zeros(len(names)).scatter_reduce(0, inverse[sound], rewards[sound], reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    alone = sizes < 2
    flat = ~alone & (highest - lowest <= tolerance)
    teaches = ~alone & ~flat
    return GroupChoice(
        kept=teaches[inverse] & sound,
        num_groups=len(names),
        num_kept=int(teaches.sum()),
        num_flat=int(flat.sum()),
        num_alone=int(alone.sum()),
        num_broken=int((~sound).sum()),
    )


def prompts_to_sample(missing: int, kept_share: float, limit: int, margin: float = 1.1) -> int:
    """How many prompts to sample next, so that about ``missing`` groups are left after the rules.

    Args:
        missing: Groups that the step still lacks.
        kept_share: Share of the groups that was kept lately, such as :attr:`GroupChoice.kept_share`.
        limit: Most prompts to ask for, whatever the share.
        margin: Factor on top, because a share is an estimate.

    Raises:
        ValueError: If the share lies outside 0..1, or ``missing``, ``limit`` or ``margin`` make no sense.

    Example:
        >>> [prompts_to_sample(32, share, limit=256) for share in (1.0, 0.5, 0.0)]
        [36, 71, 256]
    """
    if not 0 <= kept_share <= 1:
        raise ValueError(f"kept_share={kept_share} must lie between 0 and 1")
    if missing < 0 or limit < 1 or margin < 1:
        raise ValueError(f"missing={missing}, limit={limit}, margin={margin}: need at least 0, 1 and 1")
    if missing == 0:
        return 0
    if kept_share == 0:
        return limit
    return min(math.ceil(missing / kept_share * margin), limit)
