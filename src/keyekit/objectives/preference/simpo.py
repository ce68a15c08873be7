"""Simple preference optimisation: no reference model, mean log-probabilities, a margin."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from keyekit.objectives.preference.base import PreferenceObjective, Preferences
from keyekit.objectives.preference.dpo import require_pairs, require_positive

__all__ = ["SimPO"]


class SimPO(PreferenceObjective):
    """``-log sigmoid(r_c - r_r - gamma)`` with ``r = beta * log pi(y) / |y|`` (arXiv:2405.14734).

    Args:
        beta: Scale of the rewards; since they are means over tokens, far larger than DPO's (the paper: 2.0 to 2.5).
        gamma: Margin by which the chosen reward shall be larger (the paper: 0.3 to 1.6).

    Raises:
        ValueError: If ``beta`` is not positive.
    """

    needs_reference = False

    def __init__(self, beta: float = 2.0, gamma: float = 1.0) -> None:
        super().__init__()
        require_positive("beta", beta)
        self.beta = beta
        self.gamma = gamma

    def rewards(self, preferences: Preferences) -> tuple[Tensor, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        chosen, rejected = preferences.means()
        return self.beta * chosen, self.beta * rejected

    def terms(self, chosen: Tensor, rejected: Tensor, preferences: Preferences) -> dict[str, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        require_pairs(chosen, rejected)
        return {"simpo": -functional.logsigmoid(chosen - rejected - self.gamma)}
