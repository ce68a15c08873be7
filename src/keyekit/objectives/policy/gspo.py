"""Group sequence policy optimisation: one importance ratio for a whole answer."""

from __future__ import annotations

from torch import Tensor

from keyekit.objectives.policy.base import PolicyObjective, PolicyTerms, Rollouts
from keyekit.objectives.policy.clipping import check_clip, clipped_terms, sequence_log_ratios
from keyekit.objectives.policy.kl import KLForm

__all__ = ["GSPO"]


class GSPO(PolicyObjective):
    """``min(s A, clip(s, 1 - low, 1 + high) A)`` with ``s = exp(mean over an answer's tokens of log pi / pi_old)``.

    arXiv:2507.18071; every reinforcement stage of Keye-VL-2.0 (2.0 sheet 10.1) and those of Keye-VL-1.5 (8B sheet 5.8). The
    reward judges a whole answer, so the ratio does too: it is the geometric mean of the tokens' ratios, hence much nearer 1
    than any of them, and the bounds are a thousandth of GRPO's. The mean over answers is the normalisation.

    Args:
        clip_low: How far below 1 the ratio may fall (2.0 sheet 15: 3e-4, from the paper; Keye's own is not published).
        clip_high: How far above 1 it may rise (2.0 sheet 15: 4e-4).
        kl_weight: Factor on the divergence from the reference (2.0 sheet 10.1 mentions none).
        kl_form: How it is taken; see :mod:`keyekit.objectives.policy.kl`.
        entropy_weight: Factor on an entropy bonus.

    Raises:
        ValueError: If an argument is out of range or unknown.
    """

    def __init__(
        self,
        clip_low: float = 3e-4,
        clip_high: float = 4e-4,
        kl_weight: float = 0.0,
        kl_form: KLForm = "k3",
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__("sequence", None, kl_weight, kl_form, entropy_weight)
        check_clip(clip_low, clip_high)
        self.clip_low = clip_low
        self.clip_high = clip_high

    def terms(self, log_probs: Tensor, log_ratios: Tensor, advantages: Tensor, rollouts: Rollouts) -> PolicyTerms:
        """See :class:`~keyekit.objectives.policy.base.PolicyObjective`."""
        whole = sequence_log_ratios(log_ratios, rollouts, mean=True)
        return clipped_terms(whole, advantages, self.clip_low, self.clip_high)
