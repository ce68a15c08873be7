"""The exact divergence from hidden states against that of whole logits, with a gradient of its own for every token."""

import pytest
import torch

from keyekit.objectives.policy.chunked_kl import chunked_kl
from keyekit.objectives.policy.kl import full_kl
from keyekit.testing.memory import extra_memory


def problem(rows: int, dtype=torch.float64, ignored: int = 0):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 5, dtype=dtype, requires_grad=True)
    reference = torch.randn(rows, 3, dtype=dtype), torch.randn(11, 3, dtype=dtype)
    labels = torch.randint(0, 11, (rows,))
    labels[torch.randperm(rows)[:ignored]] = -100
    return hidden, weight, *reference, labels


@pytest.mark.parametrize(
    ("rows", "ignored", "chunk"), [(1, 0, 1), (13, 4, 4), (12, 0, 4), (9, 9, 2), (0, 0, 5), (8, 3, None)]
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_whole_logits(rows, ignored, chunk, temperature) -> None:
    hidden, weight, other, matrix, labels = problem(rows, ignored=ignored)
    found = chunked_kl(hidden, weight, other, matrix, labels, rows - ignored, temperature, chunk)
    plain = full_kl(hidden @ weight.T / temperature, other @ matrix.T / temperature)
    expected = torch.where(labels != -100, plain, 0)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    slopes = torch.randn(rows, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((slopes * found).sum(), (hidden, weight)),
        torch.autograd.grad((slopes * expected).sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_policy_that_is_its_reference_diverges_by_nothing_and_does_not_move() -> None:
    hidden, weight, _, _, labels = problem(7, torch.float32)
    found = chunked_kl(hidden, weight, hidden, weight, labels, 7, chunk_size=3)
    found.sum().backward()
    assert not found.any()
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient(frozen: str) -> None:
    hidden, weight, *others = problem(6)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    chunked_kl(hidden, weight, *others, 6, chunk_size=4).sum().backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_bfloat16_products_give_float32_divergences() -> None:
    hidden, weight, other, matrix, labels = problem(40, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_kl(hidden, weight, other, matrix, labels, 40)
    found.sum().backward()
    assert found.dtype == weight.grad.dtype == torch.float32
    rounded = [tensor.bfloat16().float() for tensor in (hidden, weight, other, matrix)]
    torch.testing.assert_close(
        found, full_kl(rounded[0] @ rounded[1].T, rounded[2] @ rounded[3].T), atol=0.1, rtol=0.05
    )


def test_extra_memory_is_a_few_chunks() -> None:
    rows, vocab, chunk = 2048, 32_000, 16
    hidden = torch.randn(rows, 64, requires_grad=True)
    weight = (torch.randn(vocab, 64) * 0.3).requires_grad_()
    other, labels = torch.randn(rows, 64), torch.randint(0, vocab, (rows,))
    gradients, logits = 4 * (hidden.numel() + weight.numel()), 4 * rows * vocab

    def step() -> None:
        chunked_kl(hidden, weight, other, weight.detach(), labels, rows, chunk_size=chunk).sum().backward()

    assert extra_memory(step) - gradients < logits / 8


def test_bad_arguments_are_named() -> None:
    hidden, weight, other, matrix, labels = problem(3)
    with pytest.raises(ValueError, match="temperature=0"):
        chunked_kl(hidden, weight, other, matrix, labels, 3, temperature=0)
    with pytest.raises(ValueError, match="the policy knows 11 words, the reference 10"):
        chunked_kl(hidden, weight, other, matrix[:10], labels, 3)
