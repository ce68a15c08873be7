"""The router that keeps a token within a few groups of experts, such as the nodes that hold them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.moe.base import Router, RouterSpec, Routing
from keyekit.nn.moe.scoring import normalized, routing_statistics, token_logits

__all__ = ["GroupLimited"]


class GroupLimited(Router):
    """The best A experts of the best few groups of experts (DeepSeek-V2 and V3).

    The experts form ``num_groups`` groups of neighbours. A token keeps the ``kept_groups`` groups of highest score, then takes
    its best experts among them, so that it travels to so many nodes at most. The defaults are DeepSeek-V3's; V2 has
    ``group_score: max``, ``scoring: softmax``, ``normalize: false``, ``bias_rate: 0``.

    Args:
        spec: Sizes, filled in by the mixture.
        num_groups: Groups; divides the number of experts.
        kept_groups: Groups that a token may visit.
        group_score: A group's score: the sum of its two best experts' (``top2``), or its best expert's (``max``).
        scoring: How logits become scores.
        normalize: Whether the chosen weights are divided by their sum.
        scale: Factor on the weights.
        bias_rate: Step of the balancing bias per optimizer step, as in ``SigmoidBias``; 0 for a balance loss instead.

    Raises:
        ValueError: If the groups do not divide the experts, or the kept ones hold fewer than A experts.
    """

    bias: Tensor

    def __init__(
        self,
        spec: RouterSpec,
        num_groups: int = 8,
        kept_groups: int = 4,
        group_score: Literal["top2", "max"] = "top2",
        scoring: Literal["sigmoid", "softmax"] = "sigmoid",
        normalize: bool = True,
        scale: float = 1.0,
        bias_rate: float = 1e-3,
    ) -> None:
        super().__init__(spec)
        _check_groups(spec, num_groups, kept_groups, group_score)
        self.num_groups = num_groups
        self.kept_groups = kept_groups
        self.group_score = group_score
        self.scoring = scoring
        self.normalize = normalize
        self.scale = scale
        self.bias_rate = bias_rate
        self.needs_balance_loss = bias_rate == 0
        self.weight = nn.Parameter(torch.randn(spec.num_experts, spec.dim) * 0.02)
        self.register_buffer("bias", torch.zeros(spec.num_experts))

    @classmethod
    def tiny_arguments(cls) -> dict[str, Any]:
        """Groups that fit the six experts of the conformance suite."""
        return {"num_groups": 3, "kept_groups": 2}

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
        scores = logits.sigmoid() if self.scoring == "sigmoid" else logits.softmax(dim=-1)
        chosen = self._choose(scores.detach() + self.bias) if selection is None else selection.long()
        weights = scores.gather(1, chosen)
        return Routing(
            weights=(normalized(weights) if self.normalize else weights) * self.scale,
            experts=chosen,
            statistics=routing_statistics(normalized(scores), chosen, num_tokens, logits=logits, segments=segments),
        )

    def _choose(self, scores: Tensor) -> Tensor:
        """``[T, A]`` best experts of the best groups of ``scores [T, E]``."""
        groups = scores.unflatten(1, (self.num_groups, -1))
        # The best two, or the best one, of each group add up to its score.
        of_groups = groups.topk(2 if self.group_score == "top2" else 1, dim=-1).values.sum(dim=-1)
        kept = of_groups.topk(self.kept_groups, dim=-1).indices
        others = torch.ones_like(of_groups, dtype=torch.bool).scatter_(1, kept, False)
        allowed = groups.masked_fill(others[:, :, None], float("-inf")).flatten(1)
        return allowed.topk(self.spec.active_experts, dim=-1).indices

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Move the bias against the load ``counts [E]``."""
        self.bias += self.bias_rate * torch.sign(counts.mean() - counts)


def _check_groups(spec: RouterSpec, num_groups: int, kept_groups: int, group_score: str) -> None:
    if num_groups < 1 or spec.num_experts % num_groups:
        raise ValueError(f"num_groups={num_groups} must divide num_experts={spec.num_experts}")
    width = spec.num_experts // num_groups
    if not 0 < kept_groups <= num_groups:
        raise ValueError(f"kept_groups={kept_groups} must lie between 1 and num_groups={num_groups}")
    if kept_groups * width < spec.active_experts:
        raise ValueError(
            f"kept_groups={kept_groups} hold {kept_groups * width} experts, fewer than active_experts="
            f"{spec.active_experts}: keep more groups or make them larger"
        )
    if group_score == "top2" and width < 2:
        raise ValueError(f"group_score='top2' needs two experts in each of the {num_groups} groups: choose 'max'")
