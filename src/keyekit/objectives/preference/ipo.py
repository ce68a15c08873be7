"""Identity preference optimisation: a margin to reach and not to pass."""

from __future__ import annotations

from torch import Tensor

from keyekit.objectives.preference.base import PreferenceObjective, Preferences
from keyekit.objectives.preference.dpo import require_pairs, require_positive

__all__ = ["IPO"]


class IPO(PreferenceObjective):
    """``(h_c - h_r - 1 / (2 beta))^2`` with ``h = log pi(y) - log pi_ref(y)`` (arXiv:2310.12036, equation 17).

    Where DPO pushes a pair apart for ever, IPO stops at a margin, so that pairs which always agree do not drive the model away
    from its reference.

    Args:
        beta: The paper's tau: the margin is ``1 / (2 beta)``.
        length_normalised: Whether ``h`` is the mean over a response's tokens, as in the authors' experiments; their formula
            has the sum, whose margin long responses reach too easily.

    Raises:
        ValueError: If ``beta`` is not positive.
    """

    def __init__(self, beta: float = 0.1, length_normalised: bool = True) -> None:
        super().__init__()
        require_positive("beta", beta)
        self.beta = beta
        self.length_normalised = length_normalised

    def rewards(self, preferences: Preferences) -> tuple[Tensor, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        chosen, rejected = preferences.log_ratios()
        if self.length_normalised:
            chosen = chosen / preferences.chosen_lengths.clamp(min=1)
            rejected = rejected / preferences.rejected_lengths.clamp(min=1)
        return self.beta * chosen, self.beta * rejected

    def terms(self, chosen: Tensor, rejected: Tensor, preferences: Preferences) -> dict[str, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        require_pairs(chosen, rejected)
        return {"ipo": ((chosen - rejected) / self.beta - 1 / (2 * self.beta)).square()}
