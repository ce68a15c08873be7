"""What every feed-forward has to fulfil."""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.nn.moe.base import FeedForward
from keyekit.testing.conformance.construction import make
from keyekit.testing.tiny import tiny_layer_spec

__all__ = ["CHECKS"]

CHECKS = (
    "check_shape_and_dtype",
    "check_tokens_are_independent",
    "check_gradients_flow",
    "check_statistics_leave_out_the_tail",
    "check_selection_replays",
    "check_no_tokens",
)
"""Functions of this module that make up the suite."""


def _make(cls: type) -> FeedForward:
    torch.manual_seed(0)
    return make(cls, tiny_layer_spec())


def _hidden() -> Tensor:
    return torch.randn(13, 32, generator=torch.Generator().manual_seed(1))


def check_shape_and_dtype(cls: type) -> None:
    """``[T, D]`` in, ``[T, D]`` of the same dtype out, all finite."""
    hidden = _hidden()
    out = _make(cls)(hidden).hidden
    assert out.shape == hidden.shape, f"hidden {tuple(hidden.shape)} became {tuple(out.shape)}"
    assert out.dtype == hidden.dtype, f"dtype {hidden.dtype} became {out.dtype}"
    assert out.isfinite().all(), "the output has values that are not finite"


def check_tokens_are_independent(cls: type) -> None:
    """A token's output does not depend on the others: packed equals unpacked, in any order."""
    module, hidden = _make(cls), _hidden()
    order = torch.randperm(len(hidden), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        together = module(hidden).hidden
        alone = torch.cat([module(token[None]).hidden for token in hidden])
        shuffled = module(hidden[order]).hidden
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5, msg="a token's output depends on its neighbours")
    torch.testing.assert_close(together[order], shuffled, rtol=1e-4, atol=1e-5, msg="the order of tokens matters")


def check_gradients_flow(cls: type) -> None:
    """The input and at least one parameter get a finite gradient."""
    module, hidden = _make(cls), _hidden().requires_grad_()
    module(hidden).hidden.square().sum().backward()
    assert hidden.grad is not None, "no gradient reaches the input"
    assert hidden.grad.isfinite().all(), "the input's gradient is not finite"
    reached = [p.grad for p in module.parameters() if p.grad is not None]
    assert reached, "no gradient reaches any parameter"
    assert all(gradient.isfinite().all() for gradient in reached), "a parameter's gradient is not finite"


def check_statistics_leave_out_the_tail(cls: type) -> None:
    """Padding counts in no routing statistic."""
    module, hidden = _make(cls), _hidden()
    routing = module(hidden, 9).routing
    if routing is None:
        return
    statistics = routing.statistics
    assert statistics.num_tokens == 9, f"{statistics.num_tokens} tokens counted, 9 are real"
    total = int((routing.experts[:9] >= 0).sum())
    assert statistics.counts.sum() == total, f"the counts add up to {statistics.counts.sum()}, not {total}"


def check_selection_replays(cls: type) -> None:
    """Given back its own experts, a mixture gives the same output."""
    module, hidden = _make(cls), _hidden()
    first = module(hidden)
    if first.routing is None:
        return
    again = module(hidden, None, first.routing.experts)
    torch.testing.assert_close(again.hidden, first.hidden, msg="replaying the experts changes the output")


def check_no_tokens(cls: type) -> None:
    """An empty pack becomes an empty output."""
    out = _make(cls)(torch.zeros(0, 32)).hidden
    assert out.shape == (0, 32), f"no token became {tuple(out.shape)}"
