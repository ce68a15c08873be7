"""What the sorted-segment path keeps for its backward pass."""

import torch
from torch.utils.checkpoint import checkpoint

from keyekit.nn.moe.base import RouterSpec
from keyekit.nn.moe.routers import SoftmaxTopK
from keyekit.nn.moe.sorted_segments import experts_by_segments


def test_backward_keeps_one_projection_per_visit_and_nothing_else_of_that_length() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(50, 16, requires_grad=True)
    gate_up, down = torch.randn(6, 16, 20, requires_grad=True), torch.randn(6, 10, 16, requires_grad=True)
    routing = SoftmaxTopK(RouterSpec(dim=16, num_experts=6, active_experts=3))(hidden)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        experts_by_segments(hidden, gate_up, down, routing)
    long = [tuple(tensor.shape) for tensor in kept if tensor.is_floating_point() and 150 in tensor.shape]
    assert long == [(150, 20)]


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(50, 16, requires_grad=True)
    gate_up, down = torch.randn(6, 16, 20, requires_grad=True), torch.randn(6, 10, 16, requires_grad=True)
    router = SoftmaxTopK(RouterSpec(dim=16, num_experts=6, active_experts=3))

    def transform(hidden: torch.Tensor) -> torch.Tensor:
        return experts_by_segments(hidden, gate_up, down, router(hidden))

    leaves = (hidden, gate_up, down, router.weight)
    plain = torch.autograd.grad(transform(hidden).square().sum(), leaves)
    again = torch.autograd.grad(checkpoint(transform, hidden, use_reentrant=False).square().sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
