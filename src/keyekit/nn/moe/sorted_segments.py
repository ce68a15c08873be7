"""Experts one after the other over contiguous segments of sorted visits: the fast path of processors.

Each expert gathers its tokens, and all that it makes of them stays in the cache until it is used: only the gate and up
projections are written out for the backward pass. Its products go straight into the tensors that are returned, experts
without a visit cost nothing, and the weighted sum over a token's experts is one pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from keyekit.nn.moe.base import Routing
from keyekit.nn.moe.visits import sort_visits

__all__ = ["experts_by_segments"]


def experts_by_segments(hidden: Tensor, gate_up_proj: Tensor, down_proj: Tensor, routing: Routing) -> Tensor:
    """What ``experts_by_loop`` defines. Reads the experts' ``E`` counts on the host, which a GPU would have to wait for.

    Args:
        hidden: ``[T, D]``.
        gate_up_proj: ``[E, D, 2 * inner]``.
        down_proj: ``[E, inner, D]``.
        routing: Weights and experts ``[T, A]``.

    Returns:
        ``[T, D]``; differentiable once in hidden states, matrices and weights.
    """
    if not routing.experts.numel():
        return torch.zeros_like(hidden)
    visits = sort_visits(routing, gate_up_proj.shape[0])
    places = _places(visits.order, routing.experts)
    weights = routing.weights.to(hidden.dtype)
    if not len(visits.order):
        return torch.zeros_like(hidden)
    counts = tuple(visits.counts.tolist())
    keep = torch.is_grad_enabled()
    output = _Segments.apply(
        hidden, gate_up_proj, down_proj, weights, visits.order, visits.tokens, places, counts, keep
    )
    assert isinstance(output, Tensor)
    return output


def _places(order: Tensor, experts: Tensor) -> Tensor:
    """``[T, A]`` row of each entry of the routing among the sorted visits; one past the last for entries without a visit."""
    places = torch.full_like(experts, len(order))
    places.view(-1)[order] = torch.arange(len(order), device=order.device)
    return places


def _combine(rows: Tensor, places: Tensor, weights: Tensor | None) -> Tensor:
    """``[T, D]`` sums of the ``rows [visits + 1, D]`` at ``places [T, A]``, weighted by ``weights [T, A]``, in one pass."""
    return functional.embedding_bag(places, rows, mode="sum", per_sample_weights=weights)


def _rows_and_zero(visits: int, like: Tensor) -> Tensor:
    """Uninitialised ``[visits + 1, D]`` whose last row, of entries without a visit, is zero."""
    rows = like.new_empty(visits + 1, like.shape[1])
    rows[visits] = 0
    return rows


class _Scratch:
    """Buffers of one expert, as long as the longest segment: reused, they stay in the cache and cost no fresh memory."""

    def __init__(self, longest: int, inner: int, like: Tensor) -> None:
        self._rows = like.new_empty(longest, like.shape[1])
        self._inner = like.new_empty(4, longest, inner)
        self._both = like.new_empty(longest, 2 * inner)

    def gather(self, source: Tensor, tokens: Tensor) -> Tensor:
        """``[count, D]`` rows of ``source``, until the next call."""
        return torch.index_select(source, 0, tokens, out=self._rows[: len(tokens)])

    def activate(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sigmoid and SiLU of the gate, and SiLU times up projection, each ``[count, inner]``."""
        sigmoid, silu, activated, _ = self._inner[:, : len(projected)].unbind(0)
        gate, up = projected.chunk(2, dim=1)
        torch.mul(gate, torch.sigmoid(gate, out=sigmoid), out=silu)
        return sigmoid, silu, torch.mul(silu, up, out=activated)

    def back(
        self,
        grad: Tensor,
        projected: Tensor,
        down: Tensor,
        factors: Tensor,
        factors_grad: Tensor,
        down_grad: Tensor | None,
    ) -> Tensor:
        """Gradient ``[count, 2 * inner]`` of the projections; fills those of the factors and of the down projection.

        The output is ``factor * (activated @ down)``: one product serves the factor's gradient and the activation's.
        """
        sigmoid, silu, activated = self.activate(projected)
        up = projected.chunk(2, dim=1)[1]
        both = self._both[: len(grad)]
        gate_grad, up_grad = both.chunk(2, dim=1)
        back = torch.mm(grad, down.T, out=self._inner[3, : len(grad)])
        torch.sum(torch.mul(back, activated, out=gate_grad), dim=1, keepdim=True, out=factors_grad)
        if down_grad is not None:
            torch.mm(activated.mul_(factors).T, grad, out=down_grad)
        back.mul_(factors)
        torch.mul(back, silu, out=up_grad)
        # The slope of SiLU, sigmoid + silu * (1 - sigmoid), needs no second exponential.
        slope = silu.addcmul_(silu, sigmoid, value=-1).add_(sigmoid)
        torch.mul(back.mul_(up), slope, out=gate_grad)
        return both


class _Segments(torch.autograd.Function):
    """Forward and backward of all experts."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        gate_up_proj: Tensor,
        down_proj: Tensor,
        weights: Tensor,
        order: Tensor,
        tokens: Tensor,
        places: Tensor,
        counts: tuple[int, ...],
        keep: bool,
    ) -> Tensor:
        longest = max(counts)
        projected = hidden.new_empty(len(tokens) if keep else longest, gate_up_proj.shape[2])
        visited = _rows_and_zero(len(tokens), hidden)
        scratch = _Scratch(longest, down_proj.shape[1], hidden)
        for expert, segment in _segments(counts):
            both = projected[segment] if keep else projected[: counts[expert]]
            torch.mm(scratch.gather(hidden, tokens[segment]), gate_up_proj[expert], out=both)
            torch.mm(scratch.activate(both)[2], down_proj[expert], out=visited[segment])
        if keep:
            ctx.save_for_backward(hidden, gate_up_proj, down_proj, weights, order, tokens, places, projected)
            ctx.counts = counts
        return _combine(visited, places, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, gate_up_proj, down_proj, weights, order, tokens, places, projected = ctx.saved_tensors
        needs_hidden, needs_gate_up, needs_down, needs_weights = ctx.needs_input_grad[:4]
        gate_up_grad = _like_with_zeros(gate_up_proj, ctx.counts) if needs_gate_up else None
        down_grad = _like_with_zeros(down_proj, ctx.counts) if needs_down else None
        rows_grad = _rows_and_zero(len(tokens), hidden) if needs_hidden else None
        factors = weights.flatten()[order, None]
        factors_grad = torch.empty_like(factors)
        scratch = _Scratch(max(ctx.counts), down_proj.shape[1], hidden)
        for expert, segment in _segments(ctx.counts):
            both = scratch.back(
                scratch.gather(grad, tokens[segment]),
                projected[segment],
                down_proj[expert],
                factors[segment],
                factors_grad[segment],
                None if down_grad is None else down_grad[expert],
            )
            if rows_grad is not None:
                torch.mm(both, gate_up_proj[expert].T, out=rows_grad[segment])
            if gate_up_grad is not None:
                torch.mm(scratch.gather(hidden, tokens[segment]).T, both, out=gate_up_grad[expert])
        hidden_grad = None if rows_grad is None else _combine(rows_grad, places, None)
        weights_grad = None
        if needs_weights:
            weights_grad = torch.zeros_like(weights)
            weights_grad.view(-1)[order] = factors_grad[:, 0]
        return hidden_grad, gate_up_grad, down_grad, weights_grad, None, None, None, None, None


def _segments(counts: tuple[int, ...]) -> Iterator[tuple[int, slice]]:
    """Every visited expert with its rows."""
    start = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(start, start + count)
        start += count


def _like_with_zeros(matrices: Tensor, counts: tuple[int, ...]) -> Tensor:
    """Uninitialised gradient ``[E, …]``, zero for experts without a visit."""
    gradient = torch.empty_like(matrices, memory_format=torch.contiguous_format)
    for expert, count in enumerate(counts):
        if not count:
            gradient[expert] = 0
    return gradient
