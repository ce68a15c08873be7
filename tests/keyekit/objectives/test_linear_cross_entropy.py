"""The fused output layer and loss against PyTorch's two operations: value, gradients, memory, precision."""

import pytest
import torch
from torch.nn import functional

from keyekit.objectives.linear_cross_entropy import chunk_length, linear_cross_entropy
from keyekit.testing.memory import extra_memory


def problem(rows: int, dim: int, vocab: int, dtype=torch.float64):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, dim, dtype=dtype, requires_grad=True)
    weight = (torch.randn(vocab, dim) * 0.3).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, vocab, (rows,))


def reference(hidden, weight, labels):
    return functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")


@pytest.mark.parametrize(("rows", "chunk"), [(1, 1), (7, 3), (12, 4), (13, 100), (0, 5)])
def test_value_and_gradients_equal_the_plain_loss(rows: int, chunk: int) -> None:
    hidden, weight, labels = problem(rows, 5, 11)
    ours, theirs = linear_cross_entropy(hidden, weight, labels, chunk), reference(hidden, weight, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(3.0 * ours, (hidden, weight)),
        torch.autograd.grad(3.0 * theirs, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient(frozen: str) -> None:
    hidden, weight, labels = problem(6, 5, 9)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels, 4).backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_without_gradients_only_the_loss_is_made() -> None:
    hidden, weight, labels = problem(6, 5, 9)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels, 4)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(hidden, weight, labels).detach())


def test_a_second_backward_says_what_to_do() -> None:
    loss = linear_cross_entropy(*problem(6, 5, 9))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, labels = problem(6, 5, 9, torch.float32)
    loss = linear_cross_entropy(hidden * 1e4, weight, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(hidden.grad).all()


def test_bfloat16_adds_the_gradient_of_the_weight_in_float32() -> None:
    hidden, weight, labels = problem(512, 16, 32, torch.bfloat16)
    exact = torch.autograd.grad(reference(hidden.double(), weight.double(), labels), weight)[0]
    ours = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels, 1), weight)[0]
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() / exact.norm() < 0.01


def test_autocast_decides_the_dtype_of_the_products_not_of_the_loss() -> None:
    hidden, weight, labels = problem(40, 16, 32, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad.dtype == torch.float32
    rounded = functional.cross_entropy((hidden.bfloat16() @ weight.bfloat16().T).float(), labels, reduction="sum")
    torch.testing.assert_close(loss, rounded, rtol=1e-2, atol=1e-2)


def test_extra_memory_is_a_few_chunks() -> None:
    # benchmarks/loss_memory.py measures 8,192 tokens x 151,936 words x width 256; docs/benchmarks.md has the figure.
    rows, dim, vocab, chunk = 4096, 64, 40_000, 64
    hidden, weight, labels = problem(rows, dim, vocab, torch.float32)
    gradients = 4 * (hidden.numel() + weight.numel())
    logits = 4 * rows * vocab
    peak = extra_memory(lambda: linear_cross_entropy(hidden, weight, labels, chunk).backward()) - gradients
    assert peak < logits / 8
    hidden.grad = weight.grad = None
    assert extra_memory(lambda: reference(hidden, weight, labels).backward()) - gradients > logits


def test_chunks_are_never_too_short_to_compute() -> None:
    assert chunk_length(10**9) == 64
