"""Chunked log-probabilities and entropies against PyTorch's, with a gradient of its own for every token."""

import pytest
import torch

from keyekit.objectives.token_log_probs import token_log_probs
from keyekit.testing.memory import extra_memory


def problem(rows: int, dtype=torch.float64, ignored: int = 0):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 5, dtype=dtype, requires_grad=True)
    labels = torch.randint(0, 11, (rows,))
    labels[torch.randperm(rows)[:ignored]] = -100
    return hidden, weight, labels


def reference(hidden, weight, labels, temperature=1.0):
    scores = (hidden @ weight.T / temperature).log_softmax(-1)
    kept = labels != -100
    values = torch.where(kept, scores.gather(1, labels.clamp(min=0)[:, None])[:, 0], 0)
    return values, torch.where(kept, -(scores.exp() * scores).sum(-1), 0)


@pytest.mark.parametrize(
    ("rows", "ignored", "chunk"), [(1, 0, 1), (13, 4, 4), (12, 0, 4), (9, 9, 2), (0, 0, 5), (8, 3, 99)]
)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_the_plain_softmax(rows, ignored, chunk, temperature) -> None:
    hidden, weight, labels = problem(rows, ignored=ignored)
    found = token_log_probs(hidden, weight, labels, rows - ignored, temperature, entropies=True, chunk_size=chunk)
    values, entropies = reference(hidden, weight, labels, temperature)
    torch.testing.assert_close(found.values, values, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.entropies, entropies, rtol=1e-12, atol=1e-12)
    slopes, others = torch.randn(2, rows, dtype=torch.float64)
    for ours, theirs in (
        (
            (slopes * found.values).sum() + (others * found.entropies).sum(),
            (slopes * values + others * entropies).sum(),
        ),
    ):
        pairs = zip(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)), strict=True)
        for mine, other in pairs:
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("which", ["values", "entropies"])
def test_either_can_be_differentiated_alone(which) -> None:
    hidden, weight, labels = problem(7, ignored=2)
    slopes = torch.randn(7, dtype=torch.float64)
    ours = getattr(token_log_probs(hidden, weight, labels, 5, entropies=True, chunk_size=3), which)
    theirs = reference(hidden, weight, labels)[0 if which == "values" else 1]
    for mine, other in zip(
        torch.autograd.grad((slopes * ours).sum(), (hidden, weight)),
        torch.autograd.grad((slopes * theirs).sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_entropies_cost_nothing_unless_asked_for() -> None:
    hidden, weight, labels = problem(4)
    assert token_log_probs(hidden, weight, labels, 4).entropies is None


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient(frozen: str) -> None:
    hidden, weight, labels = problem(6)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    token_log_probs(hidden, weight, labels, 6, chunk_size=4).values.sum().backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_bfloat16_products_give_float32_log_probabilities() -> None:
    hidden, weight, labels = problem(40, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = token_log_probs(hidden, weight, labels, 40)
    found.values.sum().backward()
    assert found.values.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(
        found.values, reference(hidden.bfloat16().float(), weight.bfloat16().float(), labels)[0], atol=0.05, rtol=0.02
    )


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, labels = problem(6, torch.float32)
    found = token_log_probs(hidden * 1e4, weight, labels, 6, entropies=True)
    (found.values.sum() + found.entropies.sum()).backward()
    assert found.values.isfinite().all()
    assert hidden.grad.isfinite().all()


def test_extra_memory_is_a_few_chunks() -> None:
    rows, vocab, chunk = 2048, 32_000, 32
    hidden = torch.randn(rows, 64, requires_grad=True)
    weight = (torch.randn(vocab, 64) * 0.3).requires_grad_()
    labels = torch.randint(0, vocab, (rows,))
    gradients, logits = 4 * (hidden.numel() + weight.numel()), 4 * rows * vocab

    def step() -> None:
        token_log_probs(hidden, weight, labels, rows, chunk_size=chunk).values.sum().backward()

    assert extra_memory(step) - gradients < logits / 8


def test_greedy_has_no_log_probabilities() -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        token_log_probs(*problem(3), num_targets=3, temperature=0)
