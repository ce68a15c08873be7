"""Direct preference optimisation."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from keyekit.objectives.preference.base import PreferenceObjective, Preferences

__all__ = ["DPO", "require_pairs", "require_positive"]


class DPO(PreferenceObjective):
    """``-log sigmoid(r_c - r_r)`` with ``r = beta * (log pi(y) - log pi_ref(y))``, summed over a response's tokens.

    arXiv:2305.18290; the first term of MPO (Keye-VL 8B sheet 5.3).

    Args:
        beta: How strongly the model is held to the reference: larger moves it less (Keye-VL 8B sheet 5.3: 0.1).
        label_smoothing: Assumed share of pairs whose labels are swapped; 0 trusts them all.

    Raises:
        ValueError: If ``beta`` is not positive or ``label_smoothing`` is not between 0 and 0.5.
    """

    def __init__(self, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        require_positive("beta", beta)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={label_smoothing} must lie between 0 and 0.5, 0.5 excluded")
        self.beta = beta
        self.label_smoothing = label_smoothing

    def rewards(self, preferences: Preferences) -> tuple[Tensor, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        chosen, rejected = preferences.log_ratios()
        return self.beta * chosen, self.beta * rejected

    def terms(self, chosen: Tensor, rejected: Tensor, preferences: Preferences) -> dict[str, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        require_pairs(chosen, rejected)
        kept = (1 - self.label_smoothing) * functional.logsigmoid(chosen - rejected)
        return {"dpo": -kept - self.label_smoothing * functional.logsigmoid(rejected - chosen)}


def require_pairs(chosen: Tensor, rejected: Tensor) -> None:
    """Refuse responses that have no partner.

    Raises:
        ValueError: If there are not as many rejected as chosen responses.
    """
    if len(chosen) != len(rejected):
        raise ValueError(
            f"{len(chosen)} chosen and {len(rejected)} rejected responses are no pairs: give as many of both, or choose KTO"
        )


def require_positive(name: str, value: float) -> None:
    """Refuse a factor that is not positive.

    Raises:
        ValueError: If it is not.
    """
    if not value > 0:
        raise ValueError(f"{name}={value} must be positive")
