"""Mixture of experts and its routers."""

import pytest
import torch
from torch.nn import functional

from keyekit.nn.moe.base import RouterSpec
from keyekit.nn.moe.mixture import MixtureOfExperts, grouped_product, product_by_product
from keyekit.nn.moe.routers import SigmoidBias, SoftmaxTopK
from keyekit.nn.rope.rotary import MultimodalRope
from keyekit.nn.spec import LayerSpec
from keyekit.objectives.router_balance import balance_loss, load_imbalance

SPEC = LayerSpec(
    layer=0,
    dim=16,
    num_heads=2,
    num_groups=1,
    head_dim=32,
    hidden_dim=24,
    norm_eps=1e-6,
    rope=MultimodalRope(head_dim=32, section=(4, 6, 6)),
)


@pytest.mark.parametrize("router", [SoftmaxTopK, SigmoidBias])
def test_output_is_the_weighted_sum_of_the_chosen_experts(router: type) -> None:
    torch.manual_seed(0)
    mixture = MixtureOfExperts(SPEC, num_experts=5, active_experts=2, expert_dim=12, router=router)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.mul_(20)
    hidden = torch.randn(11, 16)
    output = mixture(hidden)
    expected = torch.zeros_like(hidden)
    for token in range(11):
        for weight, expert in zip(output.routing.weights[token], output.routing.experts[token], strict=True):
            gate, up = (hidden[token] @ mixture.experts.gate_up_proj[expert]).chunk(2)
            expected[token] += weight * ((functional.silu(gate) * up) @ mixture.experts.down_proj[expert])
    torch.testing.assert_close(output.hidden, expected, rtol=1e-4, atol=1e-4)


def test_no_token_is_dropped_when_all_go_to_one_expert() -> None:
    mixture = MixtureOfExperts(SPEC, num_experts=4, active_experts=1, expert_dim=8)
    hidden = torch.randn(9, 16)
    forced = torch.full((9, 1), 3)
    output = mixture(hidden, selection=forced)
    assert output.routing.statistics.counts.tolist() == [0, 0, 0, 9]
    assert (output.hidden.abs().sum(dim=1) > 0).all()
    output.hidden.sum().backward()
    assert mixture.experts.down_proj.grad[3].abs().sum() > 0
    assert mixture.experts.down_proj.grad[:3].abs().sum() == 0


def test_softmax_router_is_qwen3s() -> None:
    torch.manual_seed(0)
    router = SoftmaxTopK(RouterSpec(dim=16, num_experts=6, active_experts=3))
    hidden = torch.randn(7, 16) * 10
    routing = router(hidden)
    probabilities = (hidden @ router.weight.T).softmax(
        -1
    )  # Keye-VL-2.0 sheet 2.2: softmax over all, then top, then renormalise
    best = probabilities.topk(3, dim=-1)
    assert torch.equal(routing.experts, best.indices)
    torch.testing.assert_close(routing.weights, best.values / best.values.sum(-1, keepdim=True))


def test_sigmoid_bias_moves_the_choice_but_not_the_weights() -> None:
    torch.manual_seed(0)
    router = SigmoidBias(RouterSpec(dim=16, num_experts=4, active_experts=2), bias_rate=0.5)
    hidden = torch.randn(32, 16)
    before = router(hidden)
    router.update(torch.tensor([100.0, 0.0, 0.0, 0.0]))
    assert router.bias.tolist() == [-0.5, 0.5, 0.5, 0.5]
    after = router(hidden)
    assert after.statistics.counts[0] < before.statistics.counts[0]
    scores = (hidden @ router.weight.T).sigmoid().gather(1, after.experts)
    torch.testing.assert_close(after.weights, scores / scores.sum(-1, keepdim=True))


def test_bias_evens_out_a_skewed_load() -> None:
    torch.manual_seed(0)
    router = SigmoidBias(RouterSpec(dim=16, num_experts=8, active_experts=2), bias_rate=0.001)
    hidden = torch.randn(2048, 16) + 2
    first = load_imbalance([router(hidden).statistics])
    for _ in range(300):
        router.update(router(hidden).statistics.counts)
    assert load_imbalance([router(hidden).statistics]) < 1.2 < first


def test_padding_counts_in_no_statistic() -> None:
    router = SoftmaxTopK(RouterSpec(dim=16, num_experts=4, active_experts=2))
    statistics = router(torch.randn(10, 16), num_tokens=6).statistics
    assert statistics.counts.sum() == 12
    assert statistics.num_tokens == 6
    torch.testing.assert_close(statistics.probabilities.sum(), torch.tensor(6.0))


def test_balance_loss_is_one_when_even_and_reaches_the_router() -> None:
    router = SoftmaxTopK(RouterSpec(dim=16, num_experts=4, active_experts=4))
    with torch.no_grad():
        router.weight.zero_()
    loss = balance_loss([router(torch.randn(8, 16)).statistics])
    torch.testing.assert_close(loss, torch.tensor(1.0))
    torch.manual_seed(0)
    skewed = SoftmaxTopK(RouterSpec(dim=16, num_experts=4, active_experts=1))
    loss = balance_loss([skewed(torch.randn(8, 16) + 1).statistics])
    loss.backward()
    assert skewed.weight.grad.abs().sum() > 0


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="between 1 and num_experts=2"):
        MixtureOfExperts(SPEC, num_experts=2, active_experts=3)


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


@pytest.mark.parametrize("router", [SoftmaxTopK, SigmoidBias])
def test_autocast_does_not_round_the_routing(router) -> None:
    gate = router(RouterSpec(dim=32, num_experts=16, active_experts=2))
    hidden = torch.randn(200, 32)
    plain = gate(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gate(hidden)
    assert torch.equal(cast.experts, plain.experts)
    assert torch.equal(cast.weights, plain.weights)
