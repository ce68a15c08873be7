"""What every router has to fulfil."""

from __future__ import annotations

import torch
from torch import Tensor

from keyekit.batch import Segments
from keyekit.nn.moe.base import Router, Routing
from keyekit.testing.conformance.construction import make
from keyekit.testing.tiny import tiny_router_spec

__all__ = ["CHECKS"]

CHECKS = (
    "check_shapes",
    "check_experts_are_distinct",
    "check_no_token_is_dropped",
    "check_visits_are_conserved",
    "check_statistics",
    "check_sums_per_sequence",
    "check_selection_replays",
    "check_gradients_reach_the_router",
    "check_no_tokens",
    "check_update_keeps_parameters_finite",
)
"""Functions of this module that make up the suite."""

_LENGTHS = (5, 0, 4, 4)
"""Tokens of three samples, one of them empty, and the tail."""


def _make(cls: type) -> Router:
    torch.manual_seed(0)
    return make(cls, tiny_router_spec())


def _hidden() -> Tensor:
    return torch.randn(13, 32, generator=torch.Generator().manual_seed(1))


def _route(
    router: Router,
    num_tokens: int | None = None,
    selection: Tensor | None = None,
    hidden: Tensor | None = None,
    segments: Segments | None = None,
) -> Routing:
    hidden = _hidden() if hidden is None else hidden
    tokens = torch.randint(0, 64, (len(hidden),), generator=torch.Generator().manual_seed(2))
    return router(hidden, num_tokens, selection, tokens=tokens, segments=segments)


def check_shapes(cls: type) -> None:
    """``weights [T, A]`` float32 and ``experts [T, A]`` int64 within range; a router that drops may have more columns."""
    router = _make(cls)
    routing = _route(router)
    columns = 2 if router.dropless else routing.experts.shape[1]
    assert routing.weights.shape == routing.experts.shape == (13, columns), "weights and experts must be [T, A]"
    assert routing.weights.dtype == torch.float32, f"weights must be float32, not {routing.weights.dtype}"
    assert routing.experts.dtype == torch.int64, f"experts must be int64, not {routing.experts.dtype}"
    assert ((routing.experts >= -1) & (routing.experts < 6)).all(), "an expert index is out of range"
    assert (routing.weights >= 0).all(), "a weight is negative"


def check_experts_are_distinct(cls: type) -> None:
    """No token visits an expert twice."""
    experts = _route(_make(cls)).experts
    visits = torch.zeros(13, 7, dtype=torch.int64).scatter_add_(1, experts + 1, torch.ones_like(experts))
    assert (visits[:, 1:] <= 1).all(), "a token visits the same expert twice"


def check_no_token_is_dropped(cls: type) -> None:
    """Each token of a dropless router visits A experts with weight, chosen without regard to the other tokens."""
    router = _make(cls)
    if not router.dropless:
        return
    routing = _route(router)
    assert routing.num_visits is None, "a dropless router has no entries to leave out"
    assert (routing.experts >= 0).all(), "a token misses a visit"
    assert (routing.weights.sum(dim=1) > 0).all(), "a token's experts have no weight"
    if getattr(router, "normalize", True) and getattr(router, "scale", 1.0) == 1.0:
        torch.testing.assert_close(
            routing.weights.sum(dim=1), torch.ones(13), msg="a token's weights do not add up to 1"
        )
    # Replaying row by row would hide a dependence: the tail is replaced, and the others must not notice.
    changed = torch.cat([_hidden()[:9], -_hidden()[9:]])
    other = _route(router, hidden=changed)
    assert torch.equal(other.experts[:9], routing.experts[:9]), "a token's experts depend on other tokens"


def check_visits_are_conserved(cls: type) -> None:
    """The counts add up to the visits, which are T * A if no token is dropped; entries of -1 weigh nothing."""
    router = _make(cls)
    routing = _route(router)
    missing = routing.experts < 0
    visits = int((~missing).sum())
    assert routing.statistics.counts.sum() == visits, (
        f"the counts add up to {routing.statistics.counts.sum()}, not {visits}"
    )
    assert (routing.num_visits is None and visits == routing.experts.numel()) or routing.num_visits == visits, (
        f"num_visits={routing.num_visits}, but there are {visits} visits among {routing.experts.numel()} entries"
    )
    assert not router.dropless or visits == 13 * 2, f"{visits} visits of 13 tokens at 2 experts each"
    assert (routing.weights[missing] == 0).all(), "an entry without a visit has a weight"


def check_statistics(cls: type) -> None:
    """Counts equal the visits of the real tokens; probabilities of a router that learns are differentiable."""
    router = _make(cls)
    routing = _route(router, 9)
    visits = torch.bincount(routing.experts[:9].flatten() + 1, minlength=7)[1:]
    assert torch.equal(routing.statistics.counts.long(), visits), "the counts are not the visits of the real tokens"
    assert routing.statistics.num_tokens == 9, f"{routing.statistics.num_tokens} tokens counted, 9 are real"
    assert routing.statistics.probabilities.shape == (6,), "probabilities must be [E]"
    learns = any(True for _ in router.parameters())
    differentiable = routing.statistics.probabilities.requires_grad
    assert differentiable or not learns, "probabilities must keep their gradient for balance losses"


def check_sums_per_sequence(cls: type) -> None:
    """Told the segments, a router sums up each by itself, and they add up to the sums of the pack."""
    routing = _route(_make(cls), 9, segments=Segments.of(_LENGTHS))
    sequences = routing.statistics.sequences
    assert sequences is not None, "segments were given, but there are no sums per sequence"
    assert sequences.num_tokens.tolist() == [5, 0, 4, 0], f"tokens per sequence are {sequences.num_tokens.tolist()}"
    for start, stop, counts in ((0, 5, sequences.counts[0]), (5, 9, sequences.counts[2])):
        visits = torch.bincount(routing.experts[start:stop].flatten() + 1, minlength=7)[1:]
        assert torch.equal(counts.long(), visits), "the counts of a sequence are not its tokens' visits"
    torch.testing.assert_close(sequences.probabilities.sum(0), routing.statistics.probabilities)
    torch.testing.assert_close(sequences.counts.sum(0), routing.statistics.counts)


def check_selection_replays(cls: type) -> None:
    """Given experts are used as they are, and weighted as if they had been chosen."""
    router = _make(cls)
    first = _route(router)
    again = _route(router, None, first.experts)
    assert torch.equal(again.experts, first.experts), "the given experts are not the ones reported"
    assert again.num_visits == first.num_visits, "replaying the experts changes the number of visits"
    torch.testing.assert_close(again.weights, first.weights, msg="replaying the experts changes their weights")


def check_gradients_reach_the_router(cls: type) -> None:
    """The weights teach the router, unless it has nothing to learn."""
    router = _make(cls)
    if not list(router.parameters()):
        return
    weights = _route(router).weights
    (weights * torch.randn(weights.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    reached = [p.grad for p in router.parameters() if p.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in reached), "the weights give the router no gradient"


def check_no_tokens(cls: type) -> None:
    """An empty pack is routed nowhere."""
    routing = _route(_make(cls), hidden=torch.zeros(0, 32))
    assert routing.experts.shape[0] == 0, "no token was given, but experts are visited"
    assert routing.statistics.counts.sum() == 0, "no token was given, but visits are counted"


def check_update_keeps_parameters_finite(cls: type) -> None:
    """Adapting to a one-sided load leaves everything finite."""
    router = _make(cls)
    router.update(torch.tensor([26.0, 0, 0, 0, 0, 0]))
    tensors = [*router.parameters(), *router.buffers()]
    assert all(tensor.isfinite().all() for tensor in tensors), "update() left values that are not finite"
    assert _route(router).weights.isfinite().all(), "weights are not finite after update()"
