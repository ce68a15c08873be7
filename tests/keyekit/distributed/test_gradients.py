"""Norms and clipping; tests/keyekit/distributed/test_strategy.py has sharded gradients on several meshes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from keyekit.distributed.gradients import clip_gradients, gradient_norm


def parameters(seed: int = 0, scale: float = 1.0) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    made = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 5), (7,), (2, 2, 2))]
    for parameter in made[:2]:
        parameter.grad = torch.randn(parameter.shape) * scale
    return made


def test_the_norm_is_that_of_all_gradients_in_one_vector():
    made = parameters()
    together = torch.cat([parameter.grad.flatten() for parameter in made if parameter.grad is not None])
    assert gradient_norm(made, "cpu").item() == pytest.approx(together.double().norm().item(), rel=1e-6)
    assert gradient_norm([nn.Parameter(torch.zeros(3))], "cpu").item() == 0
    assert gradient_norm([], "cpu").item() == 0


@pytest.mark.parametrize("scale", [0.01, 10.0])
def test_clipping_is_that_of_torch(scale):
    ours, theirs = parameters(scale=scale), parameters(scale=scale)
    norm = clip_gradients(iter(ours), 1.0, "cpu")
    assert norm.item() == pytest.approx(nn.utils.clip_grad_norm_(theirs, 1.0).item(), rel=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        if other.grad is None:
            assert one.grad is None
        else:
            torch.testing.assert_close(one.grad, other.grad)


def test_sixteen_bit_gradients_are_measured_in_float32():
    parameter = nn.Parameter(torch.zeros(4096, dtype=torch.bfloat16))
    parameter.grad = torch.full_like(parameter, 0.01)
    exact = parameter.grad.double().norm().item()
    assert gradient_norm([parameter], "cpu").item() == pytest.approx(exact, rel=1e-6)
