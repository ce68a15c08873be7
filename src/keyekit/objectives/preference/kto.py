"""Kahneman–Tversky optimisation: responses one by one, gains and losses against a reference point."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from keyekit.objectives.preference.base import PreferenceObjective, Preferences
from keyekit.objectives.preference.dpo import require_positive

__all__ = ["KTO"]


class KTO(PreferenceObjective):
    """``w_d * (1 - sigmoid(r - z))`` of good, ``w_u * (1 - sigmoid(z - r))`` of bad responses, ``r`` as in DPO.

    arXiv:2402.01306, equation 8. The reference point ``z >= 0`` is ``beta`` times an estimate of the divergence of the model
    from its reference, and has no gradient. Good and bad responses need not come in pairs.

    Args:
        beta: Scale of the rewards.
        desirable_weight: Weight of good responses; with many more of one kind, weigh the other up to within 1 to 4/3.
        undesirable_weight: Weight of bad responses.
        reference_point: ``mismatched`` is the paper's: the mean log-ratio of responses to prompts that are not theirs, which
            cost a forward pass of their own; ``batch`` is the mean log-ratio of the responses at hand; ``zero`` none.

    Raises:
        ValueError: If ``beta`` is not positive or ``reference_point`` is unknown.
    """

    def __init__(
        self,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        reference_point: Literal["mismatched", "batch", "zero"] = "batch",
    ) -> None:
        super().__init__()
        require_positive("beta", beta)
        if reference_point not in ("mismatched", "batch", "zero"):
            raise ValueError(f"reference_point={reference_point!r}: choose mismatched, batch or zero")
        self.beta = beta
        self.desirable_weight = desirable_weight
        self.undesirable_weight = undesirable_weight
        self.reference_point = reference_point

    def rewards(self, preferences: Preferences) -> tuple[Tensor, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        chosen, rejected = preferences.log_ratios()
        return self.beta * chosen, self.beta * rejected

    def terms(self, chosen: Tensor, rejected: Tensor, preferences: Preferences) -> dict[str, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        point = self._point(chosen, rejected, preferences)
        return {
            "desirable": self.desirable_weight * (1 - torch.sigmoid(chosen - point)),
            "undesirable": self.undesirable_weight * (1 - torch.sigmoid(point - rejected)),
        }

    def count(self, preferences: Preferences) -> int:
        """Responses of both kinds."""
        return len(preferences.chosen) + len(preferences.rejected)

    def _point(self, chosen: Tensor, rejected: Tensor, preferences: Preferences) -> Tensor:
        if self.reference_point == "zero":
            return chosen.new_zeros(())
        if self.reference_point == "batch":
            rewards = torch.cat([chosen, rejected]).detach()
        elif preferences.mismatched is None:
            raise ValueError(
                "reference_point='mismatched' needs Preferences.mismatched, the log-ratios of responses to other prompts: "
                "give them, or choose 'batch'"
            )
        else:
            rewards = self.beta * preferences.mismatched.detach()
        return (rewards.sum() / max(len(rewards), 1)).clamp(min=0)
