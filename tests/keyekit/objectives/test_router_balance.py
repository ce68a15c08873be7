"""Losses of routers against their formulas, transformers, and finite differences through a router."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from keyekit.batch import Segments
from keyekit.nn.moe.base import RouterSpec, RouterStatistics
from keyekit.nn.moe.expert_choice import ExpertChoice
from keyekit.nn.moe.group_limited import GroupLimited
from keyekit.nn.moe.hashing import Hash
from keyekit.nn.moe.routers import SigmoidBias, SoftmaxTopK
from keyekit.objectives.router_balance import (
    balance_loss,
    load_imbalance,
    router_z_loss,
    sequence_balance_loss,
)

SPEC = RouterSpec(dim=5, num_experts=6, active_experts=2)
LENGTHS = (4, 0, 7, 2)
"""Three samples, one of them empty, and the tail."""


def statistics(counts: list[float], probabilities: list[float], num_tokens: int) -> RouterStatistics:
    return RouterStatistics(
        probabilities=torch.tensor(probabilities),
        counts=torch.tensor(counts, dtype=torch.float32),
        num_tokens=num_tokens,
    )


def test_even_load_is_one_and_a_single_expert_is_the_number_of_experts() -> None:
    even = statistics([10, 10, 10, 10], [5.0, 5.0, 5.0, 5.0], 20)
    lone = statistics([40, 0, 0, 0], [20.0, 0.0, 0.0, 0.0], 20)
    torch.testing.assert_close(balance_loss([even]), torch.tensor(1.0))
    torch.testing.assert_close(balance_loss([lone]), torch.tensor(4.0))
    torch.testing.assert_close(balance_loss([even, lone]), torch.tensor(2.5))
    assert load_imbalance([even]).item() == 1.0
    assert load_imbalance([lone]).item() == 4.0


def test_no_token_gives_zero() -> None:
    assert balance_loss([statistics([0, 0], [0.0, 0.0], 0)]).item() == 0.0
    empty = SoftmaxTopK(SPEC)(torch.zeros(0, 5), segments=Segments.of([0, 0])).statistics
    assert sequence_balance_loss([empty]).item() == 0.0
    assert router_z_loss([empty]).item() == 0.0


def test_balance_is_transformers_value_over_the_active_experts_with_the_same_gradient() -> None:
    torch.manual_seed(0)
    router, hidden = SoftmaxTopK(SPEC), torch.randn(31, 5) * 3
    with torch.no_grad():
        router.weight.mul_(50)
    ours = balance_loss([router(hidden).statistics])
    theirs = load_balancing_loss_func((hidden @ router.weight.T,), num_experts=6, top_k=2) / 2
    torch.testing.assert_close(ours, theirs)
    (mine,) = torch.autograd.grad(ours, router.weight)
    (other,) = torch.autograd.grad(theirs, router.weight)
    torch.testing.assert_close(mine, other)
    assert mine.abs().max() > 1e-3


def test_z_loss_is_the_mean_squared_logsumexp_of_the_real_tokens() -> None:
    torch.manual_seed(0)
    routers, hidden = [SoftmaxTopK(SPEC), SigmoidBias(SPEC)], torch.randn(9, 5)
    expected = [(hidden[:7] @ router.weight.T).exp().sum(-1).log().square().mean() for router in routers]
    found = router_z_loss([router(hidden, 7).statistics for router in routers])
    torch.testing.assert_close(found, torch.stack(expected).mean())


def test_sequence_balance_is_deepseek_v3s_formula() -> None:
    torch.manual_seed(0)
    router, hidden = SigmoidBias(SPEC), torch.randn(13, 5)
    routing = router(hidden, 11, segments=Segments.of(LENGTHS))
    scores = (hidden @ router.weight.T).sigmoid()
    shares = scores / scores.sum(-1, keepdim=True)
    each = []
    for start, stop in ((0, 4), (4, 11)):
        length = stop - start
        frequency = torch.stack([(routing.experts[start:stop] == e).sum() for e in range(6)]) * 6 / (2 * length)
        each.append((frequency * shares[start:stop].mean(0)).sum())
    torch.testing.assert_close(sequence_balance_loss([routing.statistics]), torch.stack(each).mean())


def test_sequence_balance_sees_what_the_pack_as_a_whole_hides() -> None:
    """Two sequences, each at one expert: even together, as uneven as can be one by one."""
    router = SoftmaxTopK(RouterSpec(dim=2, num_experts=2, active_experts=1))
    with torch.no_grad():
        router.weight.copy_(50 * torch.eye(2))
    hidden = torch.eye(2).repeat_interleave(5, dim=0)
    layer = router(hidden, segments=Segments.of([5, 5])).statistics
    torch.testing.assert_close(balance_loss([layer]), torch.tensor(1.0))
    torch.testing.assert_close(sequence_balance_loss([layer]), torch.tensor(2.0))


ROUTERS = {
    "softmax": SoftmaxTopK,
    "sigmoid": SigmoidBias,
    "groups": partial(GroupLimited, num_groups=3, kept_groups=2),
    "expert choice": ExpertChoice,
}


@pytest.mark.parametrize("loss", [balance_loss, sequence_balance_loss, router_z_loss])
@pytest.mark.parametrize("scheme", ROUTERS.values(), ids=ROUTERS)
def test_the_gradient_into_the_router_is_that_of_finite_differences(scheme: Callable, loss: Callable) -> None:
    torch.manual_seed(0)
    router, hidden = scheme(SPEC).double(), torch.randn(13, 5, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        router.weight.mul_(50)
    experts = router(hidden, 11).experts  # the choice is a step function: hold it

    def value(hidden: Tensor, _: Tensor) -> Tensor:
        return loss([router(hidden, 11, experts, segments=Segments.of(LENGTHS)).statistics])

    assert torch.autograd.gradcheck(value, (hidden, router.weight))
    (gradient,) = torch.autograd.grad(value(hidden, router.weight), router.weight)
    even = scheme is ExpertChoice and loss is balance_loss  # 1 whatever the logits: there is nothing to learn
    assert (gradient.abs().max() > 1e-4) is not even


def test_a_router_without_logits_has_no_z_loss() -> None:
    layer = Hash(SPEC)(torch.zeros(3, 5), tokens=torch.arange(3)).statistics
    with pytest.raises(ValueError, match="set its weight to 0"):
        router_z_loss([layer])


def test_sequence_balance_asks_for_segments() -> None:
    with pytest.raises(ValueError, match="pass segments="):
        sequence_balance_loss([SoftmaxTopK(SPEC)(torch.zeros(3, 5)).statistics])
