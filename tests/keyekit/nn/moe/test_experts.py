"""All implementations of the experts against the loop that defines them: outputs and every gradient."""

import logging

import pytest
import torch
from torch import Tensor

from keyekit.nn.moe.base import RouterStatistics, Routing
from keyekit.nn.moe.experts import Experts, grouped_product, product_by_product, resolve

EXPERTS, DIM, INNER = 7, 24, 8  # strides of multiples of 16 bytes, as the grouped kernel wants


def routing_of(experts: Tensor, weights: Tensor, num_visits: int | None = None) -> Routing:
    statistics = RouterStatistics(
        probabilities=torch.ones(EXPERTS), counts=torch.ones(EXPERTS), num_tokens=len(experts)
    )
    return Routing(weights=weights, experts=experts, statistics=statistics, num_visits=num_visits)


def distinct(tokens: int, active: int) -> Tensor:
    return torch.rand(tokens, EXPERTS).argsort(dim=1)[:, :active]


def some_missing(tokens: int, active: int) -> Tensor:
    experts = distinct(tokens, active)
    experts[torch.rand(tokens, active) < 0.4] = -1
    return experts


CASES = {
    "odd": lambda: distinct(13, 3),
    "empty experts": lambda: distinct(11, 2) % 2 * 5,
    "one expert takes all": lambda: torch.full((9, 1), 3),
    "one token": lambda: distinct(1, 2),
    "no token": lambda: distinct(0, 2),
    "every expert": lambda: distinct(5, EXPERTS),
    "missing visits": lambda: some_missing(17, 4),
    "no visit at all": lambda: torch.full((4, 2), -1),
}


def run(implementation: str, case: str, dtype: torch.dtype) -> list[Tensor]:
    """Output, then gradients of hidden states, routing weights and both matrices."""
    torch.manual_seed(0)
    experts = CASES[case]()
    module = Experts(EXPERTS, DIM, INNER, implementation).to(dtype)
    hidden = torch.randn(len(experts), DIM, dtype=dtype, requires_grad=True)
    factors = torch.rand(experts.shape, dtype=dtype).masked_fill(experts < 0, 0).requires_grad_()
    missing = int((experts < 0).sum())
    routing = routing_of(experts, factors, experts.numel() - missing if missing else None)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(20)
    output = module(hidden, routing)
    loss = (output * torch.randn_like(output)).sum()
    leaves = (hidden, factors, *module.parameters())
    if not loss.requires_grad:  # no visit reaches any leaf
        return [output, *map(torch.zeros_like, leaves)]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    found = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)]
    found[1] = found[1].masked_fill(experts < 0, 0)
    return [output, *found]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("implementation", "dtype", "tolerance"),
    [("segments", torch.float64, 1e-12), ("segments", torch.float32, 1e-5), ("grouped", torch.float32, 1e-5)],
)
def test_output_and_gradients_equal_the_loops(
    implementation: str, dtype: torch.dtype, tolerance: float, case: str
) -> None:
    expected = run("loop", case, dtype)
    found = run(implementation, case, dtype)
    for name, ours, theirs in zip(("output", "hidden", "weights", "gate_up", "down"), found, expected, strict=True):
        scale = max(theirs.abs().max().item(), 1.0) if theirs.numel() else 1.0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}")


def test_the_hand_written_backward_passes_finite_differences() -> None:
    torch.manual_seed(0)
    module = Experts(EXPERTS, 3, 2, "segments").double()
    experts, hidden = some_missing(6, 3), torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    factors = torch.rand(6, 3, dtype=torch.float64, requires_grad=True)
    visits = int((experts >= 0).sum())

    def output(hidden: Tensor, factors: Tensor, *_: Tensor) -> Tensor:
        return module(hidden, routing_of(experts, factors.masked_fill(experts < 0, 0), visits))

    assert torch.autograd.gradcheck(output, (hidden, factors, *module.parameters()))


def test_frozen_experts_get_no_gradient_and_pass_one_on() -> None:
    torch.manual_seed(0)
    module, experts = Experts(EXPERTS, DIM, INNER, "segments"), distinct(9, 2)
    hidden, factors = torch.randn(9, DIM, requires_grad=True), torch.rand(9, 2)
    (full,) = torch.autograd.grad(module(hidden, routing_of(experts, factors)).sum(), hidden)
    module.requires_grad_(False)
    module(hidden, routing_of(experts, factors)).sum().backward()
    torch.testing.assert_close(hidden.grad, full)
    assert module.gate_up_proj.grad is None


def test_without_gradients_the_result_is_the_same() -> None:
    torch.manual_seed(0)
    module, experts = Experts(EXPERTS, DIM, INNER, "segments"), distinct(9, 2)
    hidden, routing = torch.randn(9, DIM), routing_of(experts, torch.rand(9, 2))
    trained = module(hidden, routing)
    with torch.no_grad():
        assert torch.equal(module(hidden, routing), trained.detach())


def test_autocast_computes_in_its_dtype_and_gives_parameters_their_own() -> None:
    torch.manual_seed(0)
    module, experts = Experts(EXPERTS, DIM, INNER, "segments"), distinct(9, 2)
    hidden, routing = torch.randn(9, DIM), routing_of(experts, torch.rand(9, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = module(hidden, routing)
    cast.float().sum().backward()
    assert cast.dtype == torch.bfloat16
    assert module.down_proj.grad is not None
    assert module.down_proj.grad.dtype == torch.float32
    torch.testing.assert_close(cast.float(), module(hidden, routing), rtol=0.05, atol=1e-3)


def test_auto_says_what_it_took_once(caplog: pytest.LogCaptureFixture) -> None:
    resolve.cache_clear()
    module = Experts(EXPERTS, DIM, INNER)
    hidden, routing = torch.randn(3, DIM), routing_of(distinct(3, 2), torch.rand(3, 2))
    with caplog.at_level(logging.INFO, logger="keyekit.nn.moe.experts"):
        module(hidden, routing), module(hidden, routing)
        with torch.no_grad():
            module(hidden, routing), module(hidden, routing)
    assert caplog.messages == [
        "experts on cpu in float32: implementation=auto took 'segments'",
        "experts on cpu in float32, few visits: implementation=auto took 'grouped'",
    ]
    assert module.resolved == "segments"
    assert resolve("auto", "cuda", torch.bfloat16) == "triton"
    assert resolve("auto", "cuda", torch.bfloat16, fits=False) == "grouped"
    assert resolve("auto", "cuda", torch.float32) == "grouped"
    assert resolve("auto", "cuda", torch.float64) == "segments"
    assert resolve("auto", "cpu", torch.float64, few=True) == "segments"
    assert resolve("loop", "cuda", torch.bfloat16) == "loop"


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(ValueError, match="'fast' is unknown; choose one of auto, triton, grouped, segments, loop"):
        Experts(2, 4, 4, "fast")  # pyright: ignore[reportArgumentType]


def test_the_grouped_product_refuses_float64() -> None:
    with pytest.raises(ValueError, match="no float64"):
        grouped_product(torch.zeros(2, 8).double(), torch.zeros(1, 8, 8).double(), torch.tensor([2]))


@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [9, 0, 0, 0], [0, 0, 0, 9]])
def test_grouped_product_equals_its_definition_with_gradients(counts: list[int]) -> None:
    torch.manual_seed(0)
    rows, matrices = torch.randn(9, 16, requires_grad=True), torch.randn(4, 16, 8, requires_grad=True)
    visits = torch.tensor(counts)
    ours, theirs = grouped_product(rows, matrices, visits), product_by_product(rows, matrices, visits)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weight).sum(), (rows, matrices))
    other = torch.autograd.grad((theirs * weight).sum(), (rows, matrices))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)
