"""What every router has to fulfil."""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.nn.moe.base import Router
from keyekit.testing.conformance.construction import make
from keyekit.testing.tiny import tiny_router_spec

__all__ = ["CHECKS"]

CHECKS = (
    "check_shapes",
    "check_experts_are_distinct",
    "check_statistics",
    "check_selection_replays",
    "check_gradients_reach_the_router",
    "check_update_keeps_parameters_finite",
)
"""Functions of this module that make up the suite."""


def _make(cls: type) -> Router:
    torch.manual_seed(0)
    return make(cls, tiny_router_spec())


def _hidden() -> Tensor:
    return torch.randn(13, 32, generator=torch.Generator().manual_seed(1))


def check_shapes(cls: type) -> None:
    """``weights [T, A]`` float32 and ``experts [T, A]`` int64 within range."""
    routing = _make(cls)(_hidden())
    assert routing.weights.shape == routing.experts.shape == (13, 2), "weights and experts must be [T, A]"
    assert routing.weights.dtype == torch.float32, f"weights must be float32, not {routing.weights.dtype}"
    assert routing.experts.dtype == torch.int64, f"experts must be int64, not {routing.experts.dtype}"
    assert ((routing.experts >= 0) & (routing.experts < 6)).all(), "an expert index is out of range"
    assert (routing.weights >= 0).all(), "a weight is negative"


def check_experts_are_distinct(cls: type) -> None:
    """No token visits an expert twice."""
    experts = _make(cls)(_hidden()).experts.sort(dim=1).values
    assert (experts.diff(dim=1) > 0).all(), "a token visits the same expert twice"


def check_statistics(cls: type) -> None:
    """Counts equal the visits of the real tokens; probabilities are differentiable."""
    routing = _make(cls)(_hidden(), 9)
    visits = torch.bincount(routing.experts[:9].flatten(), minlength=6)
    assert torch.equal(routing.statistics.counts.long(), visits), "the counts are not the visits of the real tokens"
    assert routing.statistics.num_tokens == 9, f"{routing.statistics.num_tokens} tokens counted, 9 are real"
    assert routing.statistics.probabilities.shape == (6,), "probabilities must be [E]"
    assert routing.statistics.probabilities.requires_grad, "probabilities must keep their gradient for balance losses"


def check_selection_replays(cls: type) -> None:
    """Given experts are used as they are, and weighted as if they had been chosen."""
    router, hidden = _make(cls), _hidden()
    first = router(hidden)
    again = router(hidden, None, first.experts)
    assert torch.equal(again.experts, first.experts), "the given experts are not the ones reported"
    torch.testing.assert_close(again.weights, first.weights, msg="replaying the experts changes their weights")


def check_gradients_reach_the_router(cls: type) -> None:
    """The weights teach the router."""
    router = _make(cls)
    factors = torch.randn(13, 2, generator=torch.Generator().manual_seed(3))
    (router(_hidden()).weights * factors).sum().backward()
    reached = [p.grad for p in router.parameters() if p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in reached), "the weights give the router no gradient"


def check_update_keeps_parameters_finite(cls: type) -> None:
    """Adapting to a one-sided load leaves everything finite."""
    router = _make(cls)
    router.update(torch.tensor([26.0, 0, 0, 0, 0, 0]))
    tensors = [*router.parameters(), *router.buffers()]
    assert all(tensor.isfinite().all() for tensor in tensors), "update() left values that are not finite"
    assert router(_hidden()).weights.isfinite().all(), "weights are not finite after update()"
