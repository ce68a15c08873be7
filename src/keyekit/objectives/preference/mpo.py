"""Mixed preference optimisation: relative preference, absolute quality and generation in one sum."""

from __future__ import annotations

from torch import Tensor

from keyekit.objectives.preference.base import PreferenceObjective, Preferences
from keyekit.objectives.preference.bco import BCO
from keyekit.objectives.preference.dpo import DPO

__all__ = ["MPO"]


class MPO(PreferenceObjective):
    """``0.8 * DPO + 0.2 * BCO + 1.0 * SFT`` (arXiv:2411.10442; Keye-VL 8B sheet 5.3, stage I.2 and the iterative alignment).

    Args:
        beta: Scale of the rewards of DPO and BCO (Keye-VL 8B sheet 5.3: 0.1).
        preference_weight: Factor on the DPO term.
        quality_weight: Factor on the BCO term.
        generation_weight: Factor on the SFT term, the mean over the tokens of a chosen response.
        momentum: Of the running mean that BCO takes for its threshold.
        label_smoothing: Of the DPO term.
    """

    def __init__(
        self,
        beta: float = 0.1,
        preference_weight: float = 0.8,
        quality_weight: float = 0.2,
        generation_weight: float = 1.0,
        momentum: float = 0.99,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.preference = DPO(beta, label_smoothing)
        self.quality = BCO(beta, momentum)
        self.preference_weight = preference_weight
        self.quality_weight = quality_weight
        self.generation_weight = generation_weight

    def rewards(self, preferences: Preferences) -> tuple[Tensor, Tensor]:
        """The rewards of DPO, which are those of BCO."""
        return self.preference.rewards(preferences)

    def terms(self, chosen: Tensor, rejected: Tensor, preferences: Preferences) -> dict[str, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`; the terms carry their factors."""
        return {
            "dpo": self.preference_weight * self.preference.terms(chosen, rejected, preferences)["dpo"],
            "bco": self.quality_weight * self.quality.terms(chosen, rejected, preferences)["bco"],
            "sft": -self.generation_weight * preferences.means()[0],
        }

    def update(self, rewards: Tensor) -> None:
        """Move the threshold of the BCO term."""
        self.quality.update(rewards)
