"""The router in which experts choose tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.moe.base import Router, RouterSpec, Routing
from keyekit.nn.moe.scoring import routing_statistics, token_logits

__all__ = ["ExpertChoice"]


class ExpertChoice(Router):
    """Every expert takes its best tokens of the pack (Zhou et al. 2022, arXiv:2202.09368).

    The load is even by construction, the number of experts per token is not: a token may be taken by none, which leaves it
    to the residual, or by all. Choosing among the tokens of a whole pack is **not causal** and lets samples influence each
    other: what a token gets in training depends on later tokens, and while decoding, an expert chooses among the newest
    tokens alone. Weights are the softmax scores over experts, not renormalised. Padding takes no place.

    Args:
        spec: Sizes, filled in by the mixture.
        capacity_factor: An expert takes ``tokens * active_experts / num_experts`` times this many tokens, rounded up.

    Raises:
        ValueError: If the capacity factor is not positive.
    """

    needs_balance_loss = False
    dropless = False

    def __init__(self, spec: RouterSpec, capacity_factor: float = 1.0) -> None:
        super().__init__(spec)
        if capacity_factor <= 0:
            raise ValueError(f"capacity_factor={capacity_factor} must be positive")
        self.capacity_factor = capacity_factor
        self.weight = nn.Parameter(torch.randn(spec.num_experts, spec.dim) * 0.02)

    def capacity(self, num_tokens: int) -> int:
        """Tokens that each expert takes of ``num_tokens``."""
        share = num_tokens * self.spec.active_experts * self.capacity_factor / self.spec.num_experts
        return min(math.ceil(share), num_tokens)

    def forward(
        self,
        hidden: Tensor,
        num_tokens: int | None = None,
        selection: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Routing:
        """Route ``hidden [T, D]``; see :class:`Router`. Column ``e`` of the result is expert ``e`` or -1.

        Replaying a ``selection`` reads its number of visits on the host.
        """
        logits = token_logits(hidden, self.weight)
        scores = logits.softmax(dim=-1)
        if selection is None:
            experts, num_visits = self._choose(scores.detach(), hidden.shape[0] if num_tokens is None else num_tokens)
        else:
            experts, num_visits = selection.long(), int((selection >= 0).sum())
        return Routing(
            weights=scores.gather(1, experts.clamp(min=0)).masked_fill(experts < 0, 0.0),
            experts=experts,
            statistics=routing_statistics(scores, experts, num_tokens, logits=logits, segments=segments),
            num_visits=num_visits,
        )

    def _choose(self, scores: Tensor, num_tokens: int) -> tuple[Tensor, int]:
        """``[T, E]`` experts or -1, and the number of visits, of ``scores [T, E]``."""
        capacity = self.capacity(num_tokens)
        taken = scores[:num_tokens].topk(capacity, dim=0).indices  # [capacity, E]
        visited = torch.zeros_like(scores, dtype=torch.bool).scatter_(0, taken, True)
        every = torch.arange(self.spec.num_experts, device=scores.device)
        return torch.where(visited, every, -1), capacity * self.spec.num_experts
