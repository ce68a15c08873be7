"""Routers that score every expert and take the best: softmax top-k, and sigmoid with a balancing bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.moe.base import Router, RouterSpec, Routing
from keyekit.nn.moe.scoring import normalized, routing_statistics, token_logits

__all__ = ["SigmoidBias", "SoftmaxTopK"]


class SoftmaxTopK(Router):
    """Softmax over all experts, the best A, renormalised (Qwen3, Keye-VL-2.0 sheet 2.2).

    Args:
        spec: Sizes, filled in by the mixture.
        normalize: Whether the chosen weights are divided by their sum.
    """

    def __init__(self, spec: RouterSpec, normalize: bool = True) -> None:
        super().__init__(spec)
        self.normalize = normalize
        self.weight = nn.Parameter(torch.randn(spec.num_experts, spec.dim) * 0.02)

    def forward(
        self,
        hidden: Tensor,
        num_tokens: int | None = None,
        selection: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Routing:
        """Route ``hidden [T, D]``; see :class:`Router`."""
        logits = token_logits(hidden, self.weight)
        probabilities = logits.softmax(dim=-1)
        chosen = probabilities.topk(self.spec.active_experts, dim=-1).indices if selection is None else selection.long()
        weights = probabilities.gather(1, chosen)
        return Routing(
            weights=normalized(weights) if self.normalize else weights,
            experts=chosen,
            statistics=routing_statistics(probabilities, chosen, num_tokens, logits=logits, segments=segments),
        )


class SigmoidBias(Router):
    """Sigmoid scores; a bias that follows the load steers the choice but not the weights (DeepSeek-V3).

    No auxiliary loss is needed.

    After every optimizer step the bias of an expert rises by ``bias_rate`` if it had less than its share of tokens and falls
    if it had more.

    Args:
        spec: Sizes, filled in by the mixture.
        bias_rate: Step of the bias per optimizer step.
    """

    bias: Tensor
    needs_balance_loss = False

    def __init__(self, spec: RouterSpec, bias_rate: float = 1e-3) -> None:
        super().__init__(spec)
        self.bias_rate = bias_rate
        self.weight = nn.Parameter(torch.randn(spec.num_experts, spec.dim) * 0.02)
        self.register_buffer("bias", torch.zeros(spec.num_experts))

    def forward(
        self,
        hidden: Tensor,
        num_tokens: int | None = None,
        selection: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Routing:
        """Route ``hidden [T, D]``; see :class:`Router`."""
        logits = token_logits(hidden, self.weight)
        scores = logits.sigmoid()
        best = (scores + self.bias).topk(self.spec.active_experts, dim=-1).indices
        chosen = best if selection is None else selection.long()
        return Routing(
            weights=normalized(scores.gather(1, chosen)),
            experts=chosen,
            statistics=routing_statistics(normalized(scores), chosen, num_tokens, logits=logits, segments=segments),
        )

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Move the bias against the load ``counts [E]``."""
        self.bias += self.bias_rate * torch.sign(counts.mean() - counts)
