"""REINFORCE with baselines that need no critic: leave-one-out, and the statistics of the whole batch."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from keyekit.objectives.policy.advantages import Advantages, group_advantages, returns_to_go, whiten
from keyekit.objectives.policy.base import PolicyObjective, PolicyTerms, Rollouts
from keyekit.objectives.policy.clipping import check_clip, clipped_terms, sequence_log_ratios
from keyekit.objectives.policy.kl import KLForm, kl_estimate

__all__ = ["RLOO", "ReinforcePlusPlus"]


class RLOO(PolicyObjective):
    """An answer is one action: the ratio of whole answers, and the mean of the *others* as baseline (arXiv:2402.14740).

    Right after sampling the ratio is 1 and the gradient is REINFORCE's, ``A * grad log pi(y)`` summed over the tokens; the
    bounds matter only if a batch serves several steps.

    Args:
        clip_low: How far below 1 the ratio of an answer may fall.
        clip_high: How far above 1 it may rise.
        kl_weight: Factor on the divergence from the reference; the paper puts it into the reward.
        kl_form: How it is taken; see :mod:`keyekit.objectives.policy.kl`.
        entropy_weight: Factor on an entropy bonus.

    Raises:
        ValueError: If an argument is out of range or unknown.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        kl_weight: float = 0.0,
        kl_form: KLForm = "k3",
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__("sequence", None, kl_weight, kl_form, entropy_weight)
        check_clip(clip_low, clip_high)
        self.clip_low = clip_low
        self.clip_high = clip_high

    def advantages(self, rewards: Tensor, groups: Tensor) -> Advantages:
        """Rewards less the mean of the others of their group."""
        return group_advantages(rewards, groups, baseline="leave_one_out", scale="none")

    def terms(self, log_probs: Tensor, log_ratios: Tensor, advantages: Tensor, rollouts: Rollouts) -> PolicyTerms:
        """See :class:`~keyekit.objectives.policy.base.PolicyObjective`."""
        whole = sequence_log_ratios(log_ratios, rollouts, mean=False)
        return clipped_terms(whole, advantages, self.clip_low, self.clip_high)


class ReinforcePlusPlus(PolicyObjective):
    """Clipped ratios token by token, advantages normalised over the whole batch (arXiv:2501.03262).

    The deviation of a small group is noise; that of the batch is not. With several answers a prompt ``baseline="mean"`` takes
    the mean of the group off first (REINFORCE++-baseline). The divergence from the reference belongs into the reward: with
    ``reward_kl`` :meth:`advantages` only takes the baseline off, and :meth:`token_advantages` does the rest.

    Args:
        clip_low: How far below 1 a ratio may fall.
        clip_high: How far above 1 it may rise.
        baseline: ``batch`` needs one answer a prompt, ``mean`` several.
        reward_kl: What each token's divergence (k1) costs in the reward, in its units; 0 needs no reference.
        kl_weight: Factor on a divergence in the loss.
        kl_form: How that is taken; see :mod:`keyekit.objectives.policy.kl`.
        entropy_weight: Factor on an entropy bonus.

    Raises:
        ValueError: If an argument is out of range or unknown.
    """

    def __init__(
        self,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        baseline: Literal["batch", "mean"] = "batch",
        reward_kl: float = 0.0,
        kl_weight: float = 0.0,
        kl_form: KLForm = "k3",
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__("token", None, kl_weight, kl_form, entropy_weight)
        check_clip(clip_low, clip_high)
        if baseline not in ("batch", "mean"):
            raise ValueError(f"baseline={baseline!r}: choose batch or mean")
        self.clip_low = clip_low
        self.clip_high = clip_high
        self.baseline: Literal["batch", "mean"] = baseline
        self.reward_kl = reward_kl

    @property
    def needs_reference(self) -> bool:
        """See :class:`~keyekit.objectives.policy.base.PolicyObjective`."""
        return super().needs_reference or self.reward_kl != 0

    def advantages(self, rewards: Tensor, groups: Tensor) -> Advantages:
        """Rewards less the baseline, over their deviation in the whole batch; undivided where a divergence is still to cost."""
        return group_advantages(rewards, groups, baseline=self.baseline, scale="none" if self.reward_kl else "batch")

    def token_advantages(self, rewards: Tensor, rollouts: Rollouts) -> Tensor:
        """Advantages of tokens when their divergence costs reward: ``reward - sum of reward_kl * k1`` from each on, whitened.

        Args:
            rewards: ``[B]``, one a segment; less the group's mean for REINFORCE++-baseline.
            rollouts: With reference log-probabilities; its own advantages are not looked at.

        Returns:
            ``[T]``, 0 outside the mask. Of a step in several packs :func:`~keyekit.objectives.policy.advantages.whiten` all
            :meth:`token_returns` together.

        Raises:
            ValueError: If there is no reference.
        """
        return whiten(self.token_returns(rewards, rollouts), rollouts.mask)

    def token_returns(self, rewards: Tensor, rollouts: Rollouts) -> Tensor:
        """What :meth:`token_advantages` whitens."""
        if rollouts.reference_log_probs is None:
            raise ValueError(
                "token_advantages needs Rollouts.reference_log_probs: without a reference take advantages()"
            )
        costs = self.reward_kl * kl_estimate(rollouts.old_log_probs, rollouts.reference_log_probs, "k1")
        return returns_to_go(rewards, costs, rollouts.mask, rollouts.segments)

    def terms(self, log_probs: Tensor, log_ratios: Tensor, advantages: Tensor, rollouts: Rollouts) -> PolicyTerms:
        """See :class:`~keyekit.objectives.policy.base.PolicyObjective`."""
        return clipped_terms(log_ratios, advantages, self.clip_low, self.clip_high)
