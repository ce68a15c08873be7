"""Mixture of experts and its routers."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from keyekit.nn.moe.base import RouterSpec
from keyekit.nn.moe.dense import SwiGLU
from keyekit.nn.moe.expert_choice import ExpertChoice
from keyekit.nn.moe.group_limited import GroupLimited
from keyekit.nn.moe.hashing import Hash
from keyekit.nn.moe.mixture import MixtureOfExperts
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


ROUTERS = {
    "softmax": SoftmaxTopK,
    "sigmoid": SigmoidBias,
    "groups": partial(GroupLimited, num_groups=3, kept_groups=2, group_score="max"),
    "hash": Hash,
    "expert choice": partial(ExpertChoice, capacity_factor=0.7),  # some tokens visit nobody
}


@pytest.mark.parametrize("implementation", ["segments", "grouped", "loop"])
@pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
def test_output_is_the_weighted_sum_of_the_chosen_experts(router, implementation) -> None:
    torch.manual_seed(0)
    sizes = {"num_experts": 6, "active_experts": 2, "expert_dim": 12}
    mixture = MixtureOfExperts(SPEC, **sizes, router=router, implementation=implementation)
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.mul_(20)
    hidden = torch.randn(11, 16)
    output = mixture(hidden, tokens=torch.arange(11))
    expected = torch.zeros_like(hidden)
    for token in range(11):
        for weight, expert in zip(output.routing.weights[token], output.routing.experts[token], strict=True):
            if expert < 0:
                continue
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


@pytest.mark.parametrize("router", [SoftmaxTopK, SigmoidBias])
def test_autocast_does_not_round_the_routing(router) -> None:
    gate = router(RouterSpec(dim=32, num_experts=16, active_experts=2))
    hidden = torch.randn(200, 32)
    plain = gate(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gate(hidden)
    assert torch.equal(cast.experts, plain.experts)
    assert torch.equal(cast.weights, plain.weights)


def test_shared_experts_are_a_wider_dense_feed_forward_that_every_token_visits() -> None:
    torch.manual_seed(0)
    sizes = {"num_experts": 4, "active_experts": 2, "expert_dim": 6}
    mixture = MixtureOfExperts(SPEC, **sizes, num_shared_experts=3)
    routed = MixtureOfExperts(SPEC, **sizes)
    dense = SwiGLU(replace(SPEC, hidden_dim=18))
    weights = mixture.state_dict()
    routed.load_state_dict({n: t for n, t in weights.items() if not n.startswith("shared_expert.")})
    dense.load_state_dict({n.removeprefix("shared_expert."): t for n, t in weights.items() if n.startswith("shared")})
    hidden = torch.randn(9, 16)
    torch.testing.assert_close(mixture(hidden).hidden, routed(hidden).hidden + dense(hidden).hidden)


def test_a_gated_shared_expert_is_qwen2s() -> None:
    torch.manual_seed(0)
    sizes = {"num_experts": 4, "active_experts": 2, "expert_dim": 8}
    mixture = MixtureOfExperts(SPEC, **sizes, num_shared_experts=1, gate_shared_expert=True)
    config = Qwen2MoeConfig(
        hidden_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        norm_topk_prob=True,
    )
    reference = Qwen2MoeSparseMoeBlock(config)
    weights = mixture.state_dict()
    with torch.no_grad():
        for tensor in weights.values():
            tensor.mul_(20)
    reference.load_state_dict({n: t.transpose(1, 2) if "experts." in n else t for n, t in weights.items()})
    hidden = torch.randn(1, 9, 16)
    expected = reference(hidden)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(mixture(hidden[0]).hidden, expected.view(9, 16), rtol=1e-4, atol=1e-4)


def test_a_plain_mixture_has_the_tensors_of_the_released_checkpoint_alone() -> None:
    mixture = MixtureOfExperts(SPEC, num_experts=4, active_experts=2, expert_dim=6)
    assert {name: tuple(tensor.shape) for name, tensor in mixture.state_dict().items()} == {
        "gate.weight": (4, 16),
        "experts.gate_up_proj": (4, 16, 12),
        "experts.down_proj": (4, 6, 16),
    }


def test_shared_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="num_shared_experts=-1"):
        MixtureOfExperts(SPEC, num_experts=4, active_experts=2, expert_dim=6, num_shared_experts=-1)
    with pytest.raises(ValueError, match="set num_shared_experts to 1 or more"):
        MixtureOfExperts(SPEC, num_experts=4, active_experts=2, expert_dim=6, gate_shared_expert=True)
