"""SwiGLU experts, and ways to compute them: a loop that defines them, grouped products, sorted segments, Triton kernels."""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.nn.moe.base import Routing
from keyekit.nn.moe.dispatch import Dispatcher, compute_here
from keyekit.nn.moe.sorted_segments import experts_by_segments
from keyekit.nn.moe.visits import sort_visits

__all__ = [
    "Experts",
    "Implementation",
    "experts_by_groups",
    "experts_by_loop",
    "experts_by_triton",
    "grouped_product",
    "product_by_product",
    "resolve",
]

Implementation = Literal["auto", "triton", "grouped", "segments", "loop"]
"""How experts are computed; ``auto`` decides by device, dtype and what is asked of them."""

_FEW_VISITS = 64
"""Visits per expert up to which, without gradients, a grouped product beats segments on a processor (measured)."""

_KERNEL_WIDTH = 16
"""What the widths of the Triton kernels are multiples of."""

_logger = logging.getLogger(__name__)


class Experts(nn.Module):
    """SwiGLU experts as two stacked matrices, in the layout of the released checkpoint (Keye-VL-2.0 sheet 5).

    Args:
        num_experts: Experts E.
        dim: Model width D.
        expert_dim: Inner width of one expert.
        implementation: How they are computed; see :func:`resolve`.

    Raises:
        ValueError: If the implementation is unknown.
    """

    def __init__(self, num_experts: int, dim: int, expert_dim: int, implementation: Implementation = "auto") -> None:
        super().__init__()
        if implementation not in get_args(Implementation):
            allowed = ", ".join(get_args(Implementation))
            raise ValueError(f"implementation={implementation!r} is unknown; choose one of {allowed}")
        self.num_experts = num_experts
        self.implementation: Implementation = implementation
        self.dispatcher: Dispatcher = compute_here
        """Where visits are computed; expert parallelism replaces it."""
        # Stored in x out; the gate is the first half of the last axis, the up projection the second (sheet 5).
        self.gate_up_proj = nn.Parameter(torch.randn(num_experts, dim, 2 * expert_dim) * 0.02)
        self.down_proj = nn.Parameter(torch.randn(num_experts, expert_dim, dim) * 0.02)

    @property
    def resolved(self) -> Implementation:
        """The implementation that the parameters' device and dtype lead to in training."""
        return resolve(self.implementation, self.gate_up_proj.device.type, self.gate_up_proj.dtype, fits=self._fits)

    @property
    def _fits(self) -> bool:
        """Whether the Triton kernels take these widths."""
        return not any(size % _KERNEL_WIDTH for size in self.down_proj.shape[1:])

    def forward(self, hidden: Tensor, routing: Routing) -> Tensor:
        """Weighted sum ``[T, D]`` of what the visited experts make of ``hidden [T, D]``."""
        device = hidden.device.type
        gate_up, down = (self._held(matrices) for matrices in (self.gate_up_proj, self.down_proj))
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden, gate_up, down = hidden.to(dtype), gate_up.to(dtype), down.to(dtype)

        def compute(hidden: Tensor, routing: Routing) -> Tensor:
            few = not torch.is_grad_enabled() and routing.experts.numel() <= _FEW_VISITS * len(gate_up)
            chosen = _COMPUTE[resolve(self.implementation, device, hidden.dtype, few, self._fits)]
            return chosen(hidden, gate_up, down, routing)

        with torch.autocast(device, enabled=False):
            return self.dispatcher(hidden, routing, compute)

    def _held(self, matrices: Tensor) -> Tensor:
        """The matrices of the experts that this rank holds: its part where a dispatcher knows the other ranks."""
        to_local = None if self.dispatcher is compute_here else getattr(matrices, "to_local", None)  # a DTensor's
        return matrices if to_local is None else to_local()


@cache
def resolve(
    implementation: Implementation, device: str, dtype: torch.dtype, few: bool = False, fits: bool = True
) -> Implementation:
    """What ``implementation`` means; what ``auto`` took is logged, once for each combination of the other arguments.

    On a processor ``auto`` takes the sorted segments, but PyTorch's grouped product to generate, where each expert sees a few
    tokens and one call for all experts costs less than one for each. Elsewhere it takes what never waits for the device: the
    Triton kernels in sixteen bits, otherwise PyTorch's grouped product, which multiplies float32 on the tensor cores if it may
    but knows no float64.

    Args:
        implementation: As configured.
        device: Such as ``cpu`` or ``cuda``.
        dtype: Of the products.
        few: Whether there are few visits per expert and no gradients to come.
        fits: Whether the Triton kernels take the experts' widths.
    """
    if implementation != "auto":
        return implementation
    chosen: Implementation = "grouped"
    if dtype == torch.float64 or (device == "cpu" and not few):
        chosen = "segments"
    elif device == "cuda" and fits and dtype in (torch.float16, torch.bfloat16):
        chosen = "triton"
    name = str(dtype).removeprefix("torch.")
    _logger.info(
        "experts on %s in %s%s: implementation=auto took %r", device, name, ", few visits" if few else "", chosen
    )
    return chosen


def experts_by_loop(hidden: Tensor, gate_up_proj: Tensor, down_proj: Tensor, routing: Routing) -> Tensor:
    """The definition: every expert looks for its tokens, transforms them and adds its weighted output.

    Args:
        hidden: ``[T, D]``.
        gate_up_proj: ``[E, D, 2 * inner]``.
        down_proj: ``[E, inner, D]``.
        routing: Weights and experts ``[T, A]``.

    Returns:
        ``[T, D]``.
    """
    output = torch.zeros_like(hidden)
    for expert, (gate_up, down) in enumerate(zip(gate_up_proj, down_proj, strict=True)):
        token, slot = torch.where(routing.experts == expert)
        gate, up = (hidden[token] @ gate_up).chunk(2, dim=-1)
        visited = (functional.silu(gate) * up) @ down
        output = output.index_add(0, token, visited * routing.weights[token, slot, None].to(visited.dtype))
    return output


def experts_by_groups(hidden: Tensor, gate_up_proj: Tensor, down_proj: Tensor, routing: Routing) -> Tensor:
    """:func:`experts_by_loop` as two grouped products over the visits sorted by expert; nothing is read on the host.

    Shapes are those of :func:`experts_by_loop`.
    """
    visits = sort_visits(routing, gate_up_proj.shape[0])
    gate, up = grouped_product(hidden[visits.tokens], gate_up_proj, visits.counts).chunk(2, dim=-1)
    visited = grouped_product(functional.silu(gate) * up, down_proj, visits.counts)
    weights = routing.weights.flatten()[visits.order, None].to(visited.dtype)
    return torch.zeros_like(hidden).index_add(0, visits.tokens, visited * weights)


def experts_by_triton(hidden: Tensor, gate_up_proj: Tensor, down_proj: Tensor, routing: Routing) -> Tensor:
    """:func:`experts_by_loop` by kernels that gather, activate and weight where they multiply. Nothing is read on the host.

    Shapes are those of :func:`experts_by_loop`.
    """
    from keyekit_kernels.moe.experts import swiglu_experts

    visits = sort_visits(routing, gate_up_proj.shape[0])
    matrices = gate_up_proj.contiguous(), down_proj.contiguous()
    return swiglu_experts(hidden.contiguous(), *matrices, routing.weights, visits.order, visits.tokens, visits.counts)


_COMPUTE = {
    "loop": experts_by_loop,
    "grouped": experts_by_groups,
    "segments": experts_by_segments,
    "triton": experts_by_triton,
}


def grouped_product(rows: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """Multiply consecutive groups of rows, each with its own matrix, in one call of PyTorch's grouped kernel.

    Args:
        rows: ``[visits, in]``, sorted by expert, in float32, bfloat16 or float16.
        matrices: ``[E, in, out]``.
        counts: ``[E]`` int64 rows of each expert.

    Returns:
        ``[visits, out]``.

    Raises:
        ValueError: If the rows are float64, which the kernel does not know.
    """
    if rows.dtype == torch.float64:
        raise ValueError(
            "PyTorch's grouped product knows no float64: choose implementation 'segments', 'loop' or 'auto'"
        )
    return functional.grouped_mm(rows, matrices, offs=counts.cumsum(0).to(torch.int32))


def product_by_product(rows: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """The definition of :func:`grouped_product`: one matrix product per expert. Reads ``counts [E]`` on the host."""
    groups = rows.split(counts.tolist())
    return torch.cat([group @ matrix for group, matrix in zip(groups, matrices, strict=True)])
