"""Experts hand their visits to whatever dispatcher they have."""

import torch

from keyekit.nn.moe.base import RouterSpec
from keyekit.nn.moe.dispatch import compute_here
from keyekit.nn.moe.experts import Experts
from keyekit.nn.moe.routers import SoftmaxTopK


def test_by_default_all_experts_are_here() -> None:
    experts = Experts(4, 8, 6, "loop")
    hidden = torch.randn(5, 8)
    routing = SoftmaxTopK(RouterSpec(dim=8, num_experts=4, active_experts=2))(hidden)
    assert experts.dispatcher is compute_here
    expected = experts(hidden, routing)
    seen = []

    def twice(hidden, routing, compute):
        seen.append((hidden, routing))
        return 2 * compute(hidden, routing)

    experts.dispatcher = twice
    torch.testing.assert_close(experts(hidden, routing), 2 * expected)
    assert seen[0][0] is hidden
    assert seen[0][1] is routing


def test_a_dispatcher_works_in_the_dtype_of_the_products() -> None:
    experts, dtypes = Experts(4, 8, 6, "loop"), []
    hidden = torch.randn(5, 8)
    routing = SoftmaxTopK(RouterSpec(dim=8, num_experts=4, active_experts=2))(hidden)

    def record(hidden, routing, compute):
        dtypes.extend([hidden.dtype, torch.is_autocast_enabled("cpu")])
        return compute(hidden, routing)

    experts.dispatcher = record
    with torch.autocast("cpu", dtype=torch.bfloat16):
        experts(hidden, routing)
    assert dtypes == [torch.bfloat16, False], "rows would travel twice as wide as they are used"
