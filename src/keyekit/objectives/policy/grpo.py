"""Group-relative policy optimisation, and its two corrections of length and difficulty."""

from __future__ import annotations

from torch import Tensor

from keyekit.objectives.policy.advantages import Advantages, group_advantages
from keyekit.objectives.policy.base import PolicyObjective, PolicyTerms, Rollouts
from keyekit.objectives.policy.clipping import check_clip, clipped_terms
from keyekit.objectives.policy.kl import KLForm
from keyekit.objectives.sequences import Normalisation

__all__ = ["DAPO", "GRPO", "DrGRPO"]


class GRPO(PolicyObjective):
    """Clipped ratios token by token, advantages from the group, the mean of each answer first (arXiv:2402.03300).

    Keye-VL 8B's mix-mode reinforcement learning (8B sheet 5.5; its clip and weights are not published).

    Args:
        clip_low: How far below 1 a ratio may fall before a bad token stops losing probability.
        clip_high: How far above 1 it may rise before a good token stops gaining.
        normalisation: What a token's loss is divided by.
        kl_weight: Factor on the divergence from the reference (the paper: 0.04; Thyme, 8B sheet 5.6: 0.001).
        kl_form: How it is taken; see :mod:`keyekit.objectives.policy.kl`.
        entropy_weight: Factor on an entropy bonus.

    Raises:
        ValueError: If an argument is out of range or unknown.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        normalisation: Normalisation = "sequence",
        kl_weight: float = 0.0,
        kl_form: KLForm = "k3",
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__(normalisation, None, kl_weight, kl_form, entropy_weight)
        check_clip(clip_low, clip_high)
        self.clip_low = clip_low
        self.clip_high = clip_high

    def terms(self, log_probs: Tensor, log_ratios: Tensor, advantages: Tensor, rollouts: Rollouts) -> PolicyTerms:
        """See :class:`~keyekit.objectives.policy.base.PolicyObjective`."""
        return clipped_terms(log_ratios, advantages, self.clip_low, self.clip_high)


class DAPO(GRPO):
    """GRPO with a higher upper bound, and the mean over the tokens of all answers (arXiv:2503.14476).

    The wider side lets unlikely tokens rise, which keeps entropy up; the mean over tokens lets long answers weigh by their
    length. Its third part, dynamic sampling, is :func:`~keyekit.objectives.policy.groups.informative_groups`.

    Args:
        clip_low: How far below 1 a ratio may fall (the paper: 0.2).
        clip_high: How far above 1 it may rise (the paper: 0.28).
        kl_weight: Factor on the divergence from the reference (the paper: 0).
        kl_form: How it is taken.
        entropy_weight: Factor on an entropy bonus.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        kl_weight: float = 0.0,
        kl_form: KLForm = "k3",
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__(clip_low, clip_high, "token", kl_weight, kl_form, entropy_weight)


class DrGRPO(GRPO):
    """GRPO without its two biases: no standard deviation, and one fixed length for all answers (arXiv:2503.20783).

    Dividing by an answer's own length favours long wrong answers; dividing by the deviation favours prompts that are too easy
    or too hard.

    Args:
        fixed_length: What the sum over an answer's tokens is divided by; the longest answer allowed, for instance.
        clip_low: How far below 1 a ratio may fall.
        clip_high: How far above 1 it may rise.
        kl_weight: Factor on the divergence from the reference (the paper: 0).
        kl_form: How it is taken.
        entropy_weight: Factor on an entropy bonus.

    Raises:
        ValueError: If ``fixed_length`` is not positive.
    """

    def __init__(
        self,
        fixed_length: int = 4096,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_weight: float = 0.0,
        kl_form: KLForm = "k3",
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__(clip_low, clip_high, "fixed", kl_weight, kl_form, entropy_weight)
        if fixed_length < 1:
            raise ValueError(f"fixed_length={fixed_length} must be at least 1")
        self.fixed_length = fixed_length

    def advantages(self, rewards: Tensor, groups: Tensor) -> Advantages:
        """Rewards less the mean of their group, not divided by anything."""
        return group_advantages(rewards, groups, scale="none")
