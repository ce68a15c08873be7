"""Group-limited routing against transformers' DeepSeek-V2 and V3 routers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV2Config, DeepseekV3Config
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from keyekit.nn.moe.base import RouterSpec
from keyekit.nn.moe.group_limited import GroupLimited

SPEC = RouterSpec(dim=16, num_experts=24, active_experts=5)
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_experts_per_tok": 5,
    "n_group": 6,
    "topk_group": 3,
}


def dense_weights(weights: Tensor, experts: Tensor) -> Tensor:
    """``[T, E]``: which expert stands in which column is nobody's business."""
    return torch.zeros(len(experts), 24, dtype=weights.dtype).scatter(1, experts, weights)


def test_the_defaults_are_deepseek_v3s() -> None:
    torch.manual_seed(0)
    router = GroupLimited(SPEC, num_groups=6, kept_groups=3, scale=2.5)
    config = DeepseekV3Config(**SIZES, n_routed_experts=24, norm_topk_prob=True, routed_scaling_factor=2.5)
    reference = DeepseekV3TopkRouter(config)
    with torch.no_grad():
        router.weight.mul_(50)
        router.bias.normal_(std=0.2)
        reference.weight.copy_(router.weight)
        reference.e_score_correction_bias.copy_(router.bias)
    hidden = torch.randn(200, 16)
    routing = router(hidden)
    _, weights, experts = reference(hidden)
    torch.testing.assert_close(dense_weights(routing.weights, routing.experts), dense_weights(weights, experts))
    free = (hidden @ router.weight.T).sigmoid().add(router.bias).topk(5, dim=-1).indices
    assert not torch.equal(free.sort().values, routing.experts.sort().values), "the groups limit nothing in this test"


def test_its_arguments_give_deepseek_v2s() -> None:
    torch.manual_seed(0)
    softmax: dict[str, Any] = {"group_score": "max", "scoring": "softmax", "normalize": False, "bias_rate": 0.0}
    router = GroupLimited(SPEC, num_groups=6, kept_groups=3, scale=1.5, **softmax)
    config = DeepseekV2Config(
        **SIZES, n_routed_experts=24, topk_method="group_limited_greedy", routed_scaling_factor=1.5
    )
    reference = DeepseekV2TopkRouter(config)
    with torch.no_grad():
        router.weight.mul_(50)
        reference.weight.copy_(router.weight)
    hidden = torch.randn(200, 16)
    routing = router(hidden)
    _, weights, experts = reference(hidden)
    torch.testing.assert_close(dense_weights(routing.weights, routing.experts), dense_weights(weights, experts))
    assert router.needs_balance_loss


def test_a_token_stays_within_the_kept_groups() -> None:
    torch.manual_seed(0)
    router = GroupLimited(SPEC, num_groups=6, kept_groups=2)
    groups = router(torch.randn(100, 16)).experts // 4
    assert max(len(set(row)) for row in groups.tolist()) == 2


def test_the_bias_follows_the_load_and_leaves_the_weights_alone() -> None:
    router = GroupLimited(
        RouterSpec(dim=4, num_experts=4, active_experts=1), num_groups=2, kept_groups=1, bias_rate=0.5
    )
    assert not router.needs_balance_loss
    router.update(torch.tensor([100.0, 0.0, 0.0, 0.0]))
    assert router.bias.tolist() == [-0.5, 0.5, 0.5, 0.5]
    routing = router(torch.zeros(3, 4))
    assert (routing.experts >= 2).all(), "the second group has the larger biases"
    assert torch.equal(routing.weights, torch.ones(3, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_groups": 5}, "num_groups=5 must divide num_experts=24"),
        ({"num_groups": 6, "kept_groups": 7}, "between 1 and num_groups=6"),
        ({"num_groups": 6, "kept_groups": 1}, "hold 4 experts, fewer than active_experts=5"),
        ({"num_groups": 24, "kept_groups": 8}, "choose 'max'"),
    ],
)
def test_impossible_groups_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupLimited(SPEC, **arguments)
