"""Binary classifier optimisation: each response against a shifting threshold."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from keyekit.objectives.preference.base import PreferenceObjective, Preferences
from keyekit.objectives.preference.dpo import require_pairs, require_positive

__all__ = ["BCO"]


class BCO(PreferenceObjective):
    """``-log sigmoid(r_c - delta) - log sigmoid(-(r_r - delta))``, ``r`` as in DPO (arXiv:2404.04656; Keye-VL 8B sheet 5.3).

    DPO sees differences of rewards alone, and is content when both responses become unlikely; BCO asks of each response whether
    it is good. The threshold ``delta`` is a running mean of the rewards. It starts at 0, the reward of everything while the
    model equals its reference, and moves by :meth:`update` after a step, so that a loss computed twice is the same twice.

    Args:
        beta: Scale of the rewards (Keye-VL 8B sheet 5.3: 0.1).
        momentum: What the running mean keeps in a step (Keye-VL 8B sheet 5.3: unstated, 0.99 in NeMo-RL); 1 holds ``delta``
            at 0.

    Raises:
        ValueError: If ``beta`` is not positive or ``momentum`` lies outside 0..1.
    """

    delta: Tensor

    def __init__(self, beta: float = 0.1, momentum: float = 0.99) -> None:
        super().__init__()
        require_positive("beta", beta)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum} must lie between 0 and 1")
        self.beta = beta
        self.momentum = momentum
        self.register_buffer("delta", torch.zeros((), dtype=torch.float32))

    def rewards(self, preferences: Preferences) -> tuple[Tensor, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        chosen, rejected = preferences.log_ratios()
        return self.beta * chosen, self.beta * rejected

    def terms(self, chosen: Tensor, rejected: Tensor, preferences: Preferences) -> dict[str, Tensor]:
        """See :class:`~keyekit.objectives.preference.base.PreferenceObjective`."""
        require_pairs(chosen, rejected)
        good, bad = chosen - self.delta, rejected - self.delta
        return {"bco": -functional.logsigmoid(good) - functional.logsigmoid(-bad)}

    @torch.no_grad()
    def update(self, rewards: Tensor) -> None:
        """Move the threshold; a mean that is no number leaves it where it is."""
        moved = self.delta.lerp(rewards.to(self.delta), 1 - self.momentum)
        self.delta.copy_(torch.where(moved.isfinite(), moved, self.delta))
