"""Mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.moe.base import FeedForward, FeedForwardOutput, Router, RouterSpec
from keyekit.nn.moe.dense import SwiGLU
from keyekit.nn.moe.experts import Experts, Implementation
from keyekit.nn.moe.routers import SoftmaxTopK
from keyekit.nn.spec import LayerSpec

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(FeedForward):
    """Each token visits the few experts that a router chooses; no token is dropped (Keye-VL-2.0 sheet 2.2).

    Args:
        spec: Sizes of the layer, filled in by the decoder.
        num_experts: Experts E.
        active_experts: Experts per token A.
        expert_dim: Inner width of one expert.
        router: Which router chooses.
        implementation: How experts are computed: ``triton`` (kernels of ours, for GPUs), ``grouped`` (PyTorch's grouped
            product), ``segments`` (sorted visits, one expert after the other), ``loop`` (the definition). ``auto`` decides by
            device and dtype and logs what it took.
        num_shared_experts: Experts that every token visits, as one SwiGLU of so many times the inner width; none by default.
        gate_shared_expert: Whether a learnt sigmoid of the token scales the shared expert.

    Raises:
        ValueError: If sizes or implementation are impossible.
    """

    def __init__(
        self,
        spec: LayerSpec,
        num_experts: int = 128,
        active_experts: int = 8,
        expert_dim: int = 768,
        router: Callable[[RouterSpec], Router] = SoftmaxTopK,
        implementation: Implementation = "auto",
        num_shared_experts: int = 0,
        gate_shared_expert: bool = False,
    ) -> None:
        super().__init__(spec)
        if num_shared_experts < 0:
            raise ValueError(f"num_shared_experts={num_shared_experts} must be at least 0")
        if gate_shared_expert and not num_shared_experts:
            raise ValueError("gate_shared_expert needs a shared expert: set num_shared_experts to 1 or more")
        self.gate = router(RouterSpec(dim=spec.dim, num_experts=num_experts, active_experts=active_experts))
        self.experts = Experts(num_experts, spec.dim, expert_dim, implementation)
        wide = replace(spec, hidden_dim=num_shared_experts * expert_dim)
        self.shared_expert = SwiGLU(wide) if num_shared_experts else None
        self.shared_expert_gate = nn.Linear(spec.dim, 1, bias=False) if gate_shared_expert else None

    def forward(
        self,
        hidden: Tensor,
        num_tokens: int | None = None,
        selection: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        segments: Segments | None = None,
    ) -> FeedForwardOutput:
        """Transform ``hidden [T, D]``; see :class:`FeedForward`."""
        routing = self.gate(hidden, num_tokens, selection, tokens=tokens, segments=segments)
        output = self.experts(hidden, routing)
        if self.shared_expert is not None:
            shared = self.shared_expert(hidden).hidden
            if self.shared_expert_gate is not None:
                shared = shared * self.shared_expert_gate(hidden).sigmoid()
            output = output + shared
        return FeedForwardOutput(hidden=output, routing=routing)
