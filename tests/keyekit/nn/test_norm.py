"""RMSNorm: the same numbers as PyTorch's, with and without gradients, in every dtype."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from keyekit.nn.norm import RMSNorm


def norm_of(width: int, dtype: torch.dtype = torch.float32) -> RMSNorm:
    norm = RMSNorm(width, eps=1e-3).to(dtype)
    torch.nn.init.normal_(norm.weight)
    return norm


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 2), (0, 7), (9, 1)])
def test_gradients_equal_those_of_pytorch(shape: tuple[int, ...]) -> None:
    norm = norm_of(shape[-1], torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(shape, dtype=torch.float64)
    ours = torch.autograd.grad((norm(x) * weights).sum(), (x, norm.weight))
    theirs = functional.rms_norm(x, shape[-1:], norm.weight, norm.eps)
    torch.testing.assert_close(norm(x), theirs, rtol=1e-12, atol=1e-12)
    for got, wanted in zip(ours, torch.autograd.grad((theirs * weights).sum(), (x, norm.weight)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["input", "weight"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    norm, x = norm_of(6), torch.randn(5, 6)
    moving = norm.weight if frozen == "input" else x.requires_grad_()
    norm.weight.requires_grad_(frozen == "input")
    norm(x).sum().backward()
    assert moving.grad is not None
    assert moving.grad.abs().sum() > 0
    assert (norm.weight.grad is None) == (frozen == "weight")
    assert (x.grad is None) == (frozen == "input")


def test_strided_input() -> None:
    norm, whole = norm_of(4), torch.randn(5, 3, 8)
    sliced = whole[:, 1:, ::2].requires_grad_()
    whole_grad = torch.autograd.grad(norm(sliced).square().sum(), sliced)[0]
    packed = sliced.detach().contiguous().requires_grad_()
    torch.testing.assert_close(whole_grad, torch.autograd.grad(norm(packed).square().sum(), packed)[0])


def test_half_precision_is_normalised_in_float32() -> None:
    norm = norm_of(64).bfloat16()
    x = (torch.randn(7, 64) * 100).bfloat16().requires_grad_()
    got = norm(x)
    assert got.dtype == torch.bfloat16
    wanted = functional.rms_norm(x.float(), (64,), norm.weight.float(), norm.eps)
    assert torch.equal(got, wanted.bfloat16())
    got.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_without_gradients_the_same_numbers() -> None:
    norm, x = norm_of(32), torch.randn(11, 32)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), norm(x.clone().requires_grad_()), rtol=1e-6, atol=1e-6)
        plain = norm(x)
    torch.testing.assert_close(norm(x), plain, rtol=1e-6, atol=1e-6)
