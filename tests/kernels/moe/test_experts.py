"""Triton experts against the loop that defines them, in float64: outputs and every gradient."""

import pytest
import torch

from keyekit.nn.moe.base import Routing
from keyekit.nn.moe.experts import experts_by_loop, experts_by_triton
from keyekit.nn.moe.scoring import routing_statistics
from keyekit_kernels.moe.experts import swiglu_experts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("hidden", "gate and up", "down", "weights")
# name: tokens, width, inner width, experts, choices
CASES = {
    "several tiles an expert": (40, 32, 48, 3, 2),
    "experts that nobody visits": (5, 16, 16, 9, 1),
    "one token": (1, 16, 32, 4, 3),
    "columns that tiles do not divide": (9, 48, 80, 2, 2),
}


def problem(case: str, dtype: torch.dtype, absent: bool = False):
    tokens, width, inner, experts, choices = CASES[case]
    generator = torch.Generator().manual_seed(0)
    shapes = (tokens, width), (experts, width, 2 * inner), (experts, inner, width), (tokens, experts)
    hidden, gate_up, down, scores = (torch.randn(shape, generator=generator) for shape in shapes)
    weights, chosen = scores.softmax(1).topk(choices, dim=1)
    num_visits = None
    if absent:  # as on a rank that holds some of the experts
        chosen = chosen.masked_fill(chosen == 0, -1)
        num_visits = int((chosen >= 0).sum())
    tensors = [tensor.to(DEVICE, dtype) for tensor in (hidden, gate_up * width**-0.5, down * inner**-0.5, weights)]
    return tensors, chosen.to(DEVICE), num_visits


def results(compute, tensors, chosen, num_visits):
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    hidden, gate_up, down, weights = inputs
    statistics = routing_statistics(torch.ones(len(chosen), len(down), device=DEVICE), chosen.clamp(min=0), None)
    routing = Routing(weights=weights, experts=chosen, statistics=statistics, num_visits=num_visits)
    output = compute(hidden, gate_up, down, routing)
    factor = torch.linspace(-1, 1, output.numel(), device=DEVICE).view_as(output).to(output.dtype)
    return output.detach(), torch.autograd.grad((output * factor).sum(), inputs)


def check(case: str, dtype: torch.dtype, absent: bool, limit: float) -> None:
    tensors, chosen, num_visits = problem(case, dtype, absent)
    output, gradients = results(experts_by_triton, tensors, chosen, num_visits)
    expected, expected_gradients = results(experts_by_loop, [x.double() for x in tensors], chosen, None)
    pairs = zip(("output", *NAMES), (output, *gradients), (expected, *expected_gradients), strict=True)
    for name, ours, theirs in pairs:
        assert ours.dtype == dtype
        error = (ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-3)
        assert error <= limit, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("absent", [False, True], ids=["all experts", "an expert elsewhere"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_the_definition(case: str, absent: bool) -> None:
    check(case, torch.float32, absent, 1e-5)


def test_half_precision() -> None:
    check("several tiles an expert", torch.float16, absent=False, limit=3e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("absent", [False, True], ids=["all experts", "an expert elsewhere"])
def test_large_tiles_on_the_device(absent: bool, monkeypatch) -> None:
    monkeypatch.setitem(CASES, "large", (1000, 512, 384, 16, 4))
    check("large", torch.bfloat16, absent, 1e-2)


@pytest.mark.gpu
def test_on_the_device_results_are_the_same_bits_in_every_run(monkeypatch) -> None:
    monkeypatch.setitem(CASES, "large", (1000, 512, 384, 16, 4))
    tensors, chosen, num_visits = problem("large", torch.bfloat16)
    first, gradients = results(experts_by_triton, tensors, chosen, num_visits)
    for _ in range(5):
        again, gradients_again = results(experts_by_triton, tensors, chosen, num_visits)
        assert torch.equal(first, again)
        assert all(torch.equal(one, other) for one, other in zip(gradients, gradients_again, strict=True))


def test_a_graph_can_be_walked_twice() -> None:
    tensors, chosen, _ = problem("one token", torch.float32)
    inputs = [tensor.requires_grad_() for tensor in tensors]
    routing = Routing(weights=inputs[3], experts=chosen, statistics=routing_statistics(torch.ones(1, 4), chosen, None))
    output = experts_by_triton(*inputs[:3], routing).sum()
    once = torch.autograd.grad(output, inputs, retain_graph=True)
    assert all(torch.equal(one, other) for one, other in zip(once, torch.autograd.grad(output, inputs), strict=True))


@pytest.mark.parametrize(("width", "inner", "message"), [(24, 16, "D=24"), (16, 40, "inner=40")])
def test_other_widths_are_refused(width: int, inner: int, message: str) -> None:
    shapes = (2, width), (1, width, 2 * inner), (1, inner, width), (2, 1)
    visit = torch.arange(2)
    with pytest.raises(ValueError, match=message):
        swiglu_experts(*(torch.zeros(shape) for shape in shapes), visit, visit, torch.tensor([2]))


def test_strided_tensors_are_refused() -> None:
    shapes = (2, 16), (1, 32, 16), (1, 16, 16), (2, 1)
    hidden, gate_up, down, weights = (torch.zeros(shape) for shape in shapes)
    visit = torch.arange(2)
    with pytest.raises(ValueError, match="gate_up_proj is not contiguous"):
        swiglu_experts(hidden, gate_up.transpose(1, 2), down, weights, visit, visit, torch.tensor([2]))


def test_a_processor_is_refused_unless_it_interprets(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    shapes = (2, 16), (1, 16, 32), (1, 16, 16), (2, 1)
    visit = torch.arange(2)
    with pytest.raises(ValueError, match="need a GPU, the tensors are on cpu"):
        swiglu_experts(*(torch.zeros(shape) for shape in shapes), visit, visit, torch.tensor([2]))
