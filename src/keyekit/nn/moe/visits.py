"""Visits of tokens at experts, sorted by expert."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keyekit.nn.moe.base import Routing

__all__ = ["Visits", "sort_visits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """The visits of a routing in the order in which experts are computed: by expert, then by token.

    Args:
        order: ``[visits]`` int64, places in the flattened ``[T * A]`` routing.
        tokens: ``[visits]`` int64, the visiting tokens.
        counts: ``[E]`` int64 visits of each expert.
    """

    order: Tensor
    tokens: Tensor
    counts: Tensor


def sort_visits(routing: Routing, num_experts: int) -> Visits:
    """Sort the visits of a routing; entries of -1 are left out, without reading anything on the host."""
    experts = routing.experts.flatten()
    if routing.num_visits is not None:
        experts = torch.where(experts < 0, num_experts, experts)  # no visit sorts last
    order = experts.argsort(stable=True)[: routing.num_visits]
    counts = experts.new_zeros(num_experts + 1).scatter_add_(0, experts, torch.ones_like(experts))
    return Visits(
        order=order,
        tokens=order.div(max(routing.experts.shape[1], 1), rounding_mode="floor"),
        counts=counts[:num_experts],
    )
