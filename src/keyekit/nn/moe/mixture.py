"""Mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.nn.moe.base import FeedForward, FeedForwardOutput, Router, RouterSpec
from keyekit.nn.moe.routers import SoftmaxTopK
from keyekit.nn.spec import LayerSpec

__all__ = ["Experts", "MixtureOfExperts", "grouped_product", "product_by_product"]


class MixtureOfExperts(FeedForward):
    """Each token visits the few experts that a router chooses; no token is dropped (Keye-VL-2.0 sheet 2.2).

    Args:
        spec: Sizes of the layer, filled in by the decoder.
        num_experts: Experts E.
        active_experts: Experts per token A.
        expert_dim: Inner width of one expert.
        router: Which router chooses.
    """

    def __init__(
        self,
        spec: LayerSpec,
        num_experts: int = 128,
        active_experts: int = 8,
        expert_dim: int = 768,
        router: Callable[[RouterSpec], Router] = SoftmaxTopK,
    ) -> None:
        super().__init__(spec)
        self.gate = router(RouterSpec(dim=spec.dim, num_experts=num_experts, active_experts=active_experts))
        self.experts = Experts(num_experts, spec.dim, expert_dim)

    def forward(
        self, hidden: Tensor, num_tokens: int | None = None, selection: Tensor | None = None
    ) -> FeedForwardOutput:
        """Transform ``hidden [T, D]``; see :class:`FeedForward`."""
        routing = self.gate(hidden, num_tokens, selection)
        num_active = routing.experts.shape[1]
        visits = routing.experts.flatten()
        order = visits.argsort(stable=True)  # visits sorted by expert, tokens in order within each
        counts = visits.new_zeros(self.experts.num_experts).scatter_add_(0, visits, torch.ones_like(visits))
        visited = self.experts(hidden[order // num_active], counts)
        weighted = visited * routing.weights.flatten()[order, None].to(visited.dtype)
        return FeedForwardOutput(
            hidden=torch.zeros_like(hidden).index_add(0, order // num_active, weighted), routing=routing
        )


class Experts(nn.Module):
    """SwiGLU experts as two stacked matrices, in the layout of the released checkpoint (Keye-VL-2.0 sheet 5).

    Args:
        num_experts: Experts E.
        dim: Model width D.
        expert_dim: Inner width of one expert.
    """

    def __init__(self, num_experts: int, dim: int, expert_dim: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        # Stored in x out; the gate is the first half of the last axis, the up projection the second (sheet 5).
        self.gate_up_proj = nn.Parameter(torch.randn(num_experts, dim, 2 * expert_dim) * 0.02)
        self.down_proj = nn.Parameter(torch.randn(num_experts, expert_dim, dim) * 0.02)

    def forward(self, hidden: Tensor, counts: Tensor) -> Tensor:
        """Transform ``hidden [visits, D]``, sorted by expert, of which ``counts [E]`` go to each."""
        gate, up = grouped_product(hidden, self.gate_up_proj, counts).chunk(2, dim=-1)
        return grouped_product(functional.silu(gate) * up, self.down_proj, counts)


def grouped_product(rows: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """Multiply consecutive groups of rows, each with its own matrix, in one call.

    PyTorch's grouped kernel takes float32, bfloat16 and float16; float64 runs through :func:`product_by_product`.

    Args:
        rows: ``[visits, in]``, sorted by expert.
        matrices: ``[E, in, out]``.
        counts: ``[E]`` int64 rows of each expert.

    Returns:
        ``[visits, out]``.
    """
    if rows.dtype == torch.float64:
        return product_by_product(rows, matrices, counts)
    return functional.grouped_mm(rows, matrices, offs=counts.cumsum(0).to(torch.int32))


def product_by_product(rows: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """The definition of :func:`grouped_product`: one matrix product per expert. Reads ``counts [E]`` on the host."""
    groups = rows.split(counts.tolist())
    return torch.cat([group @ matrix for group, matrix in zip(groups, matrices, strict=True)])
