"""Clipped importance sampling: the weight is clipped, never the gradient."""

from __future__ import annotations

from torch import Tensor

from keyekit.objectives.policy.base import PolicyObjective, PolicyTerms, Rollouts
from keyekit.objectives.policy.clipping import check_clip
from keyekit.objectives.policy.kl import KLForm

__all__ = ["CISPO"]


class CISPO(PolicyObjective):
    """``-sg(clip(r, 1 - low, 1 + high)) A log pi``, the mean over the tokens of all answers (MiniMax-M1, arXiv:2506.13585).

    PPO's bounds drop the gradient of the tokens beyond them, often rare words that turn a line of thought. Here such a token
    keeps its gradient, with a weight that is held down.

    Args:
        clip_low: How far below 1 a weight may fall; 1 is no lower bound (the paper).
        clip_high: How far above 1 it may rise; the paper tunes it and does not print it.
        kl_weight: Factor on the divergence from the reference (the paper: 0).
        kl_form: How it is taken; see :mod:`keyekit.objectives.policy.kl`.
        entropy_weight: Factor on an entropy bonus.

    Raises:
        ValueError: If an argument is out of range or unknown.
    """

    def __init__(
        self,
        clip_low: float = 1.0,
        clip_high: float = 4.0,
        kl_weight: float = 0.0,
        kl_form: KLForm = "k3",
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__("token", None, kl_weight, kl_form, entropy_weight)
        check_clip(clip_low, clip_high)
        self.clip_low = clip_low
        self.clip_high = clip_high

    def terms(self, log_probs: Tensor, log_ratios: Tensor, advantages: Tensor, rollouts: Rollouts) -> PolicyTerms:
        """See :class:`~keyekit.objectives.policy.base.PolicyObjective`; ``low`` and ``high`` mark the weights that are held."""
        ratios = log_ratios.detach().exp()
        weights = ratios.clamp(1 - self.clip_low, 1 + self.clip_high)
        moves = advantages != 0
        return PolicyTerms(
            losses=-weights * advantages * log_probs,
            ratios=ratios,
            low=moves & (ratios < 1 - self.clip_low),
            high=moves & (ratios > 1 + self.clip_high),
        )
