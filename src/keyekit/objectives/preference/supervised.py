"""The supervised term: chosen responses become likelier by themselves."""

from __future__ import annotations

from torch import Tensor

from keyekit.objectives.preference.base import PreferenceObjective, Preferences

__all__ = ["SFT"]


class SFT(PreferenceObjective):
    """``-log pi(y_c) / |y_c|``: cross-entropy of the chosen response, the mean over its tokens (Keye-VL 8B sheet 5.3).

    Each response counts the same, whatever its length. It ignores the rejected responses; the rewards that it reports are mean
    log-probabilities.
    """

    needs_reference = False

    def rewards(self, preferences: Preferences) -> tuple[Tensor, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        return preferences.means()

    def terms(self, chosen: Tensor, rejected: Tensor, preferences: Preferences) -> dict[str, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        return {"sft": -chosen}
