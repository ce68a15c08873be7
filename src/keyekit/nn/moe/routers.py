"""Routers: softmax top-k, and sigmoid with a balancing bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.nn.moe.base import Router, RouterSpec, RouterStatistics, Routing

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

    def forward(self, hidden: Tensor, num_tokens: int | None = None, selection: Tensor | None = None) -> Routing:
        """Route ``hidden [T, D]``; see :class:`Router`."""
        probabilities = _logits(hidden, self.weight).softmax(dim=-1)
        experts = (
            probabilities.topk(self.spec.active_experts, dim=-1).indices if selection is None else selection.long()
        )
        weights = probabilities.gather(1, experts)
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(weights=weights, experts=experts, statistics=_statistics(probabilities, experts, num_tokens))


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

    def forward(self, hidden: Tensor, num_tokens: int | None = None, selection: Tensor | None = None) -> Routing:
        """Route ``hidden [T, D]``; see :class:`Router`."""
        scores = _logits(hidden, self.weight).sigmoid()
        chosen = (scores + self.bias).topk(self.spec.active_experts, dim=-1).indices
        experts = chosen if selection is None else selection.long()
        weights = scores.gather(1, experts)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        shares = scores / scores.sum(dim=-1, keepdim=True)
        return Routing(weights=weights, experts=experts, statistics=_statistics(shares, experts, num_tokens))

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Move the bias against the load ``counts [E]``."""
        self.bias += self.bias_rate * torch.sign(counts.mean() - counts)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """``[T, E]`` of ``hidden [T, D]`` in float32, also under autocast: rounded logits send tokens to other experts."""
    with torch.autocast(hidden.device.type, enabled=False):
        return functional.linear(hidden.float(), weight.float())


def _statistics(probabilities: Tensor, experts: Tensor, num_tokens: int | None) -> RouterStatistics:
    """Sum probabilities ``[T, E]`` and choices ``[T, A]`` over the first ``num_tokens`` tokens."""
    num_tokens = probabilities.shape[0] if num_tokens is None else num_tokens
    counts = torch.zeros(probabilities.shape[1], device=probabilities.device)
    chosen = experts[:num_tokens].flatten()
    counts.index_add_(0, chosen, torch.ones_like(chosen, dtype=counts.dtype))
    return RouterStatistics(probabilities=probabilities[:num_tokens].sum(dim=0), counts=counts, num_tokens=num_tokens)
