"""Losses of rows against the same losses of whole logits, for any number of chunks."""

import pytest
import torch

from keyekit.objectives.chunked_head import sum_over_rows
from keyekit.testing.memory import extra_memory


def problem(rows: int, dtype=torch.float64):
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 5, dtype=dtype, requires_grad=True)
    weight = torch.randn(11, 5, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randn(rows, 11, dtype=dtype)


@pytest.mark.parametrize(("rows", "chunk"), [(1, 1), (7, 3), (12, 4), (13, 100), (0, 5), (9, None)])
def test_sum_notes_and_gradients_equal_whole_logits(rows: int, chunk: int | None) -> None:
    hidden, weight, targets = problem(rows)

    def loss(logits, part):
        each = (logits.tanh() - targets[part]).square().sum(-1)
        return each, torch.stack([each, logits.amax(-1)], dim=1)

    total, notes = sum_over_rows(hidden, weight, loss, 2, chunk)
    expected, whole = loss(hidden @ weight.T, slice(None))
    torch.testing.assert_close(total, expected.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(notes, whole.detach(), rtol=1e-12, atol=1e-12)
    assert not notes.requires_grad
    for mine, other in zip(
        torch.autograd.grad(3.0 * total, (hidden, weight)),
        torch.autograd.grad(3.0 * expected.sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_without_gradients_none_is_made() -> None:
    hidden, weight, _ = problem(4)
    with torch.no_grad():
        total, _ = sum_over_rows(hidden, weight, lambda logits, _: (logits.sum(-1), logits[:, :1]), 1)
    assert not total.requires_grad


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient(frozen: str) -> None:
    hidden, weight, _ = problem(6)
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    sum_over_rows(hidden, weight, lambda logits, _: (logits.logsumexp(-1), logits[:, :1]), 1, 4)[0].backward()
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_a_second_backward_says_what_to_do() -> None:
    hidden, weight, _ = problem(3)
    total, _ = sum_over_rows(hidden, weight, lambda logits, _: (logits.sum(-1), logits[:, :1]), 1)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        total.backward()


def test_extra_memory_is_a_few_chunks() -> None:
    rows, vocab = 2048, 32_000
    hidden = torch.randn(rows, 64, requires_grad=True)
    weight = (torch.randn(vocab, 64) * 0.3).requires_grad_()
    gradients, logits = 4 * (hidden.numel() + weight.numel()), 4 * rows * vocab

    def loss(logits, _):
        scores = logits.log_softmax(-1)
        return (scores.exp() * scores).sum(-1), scores[:, :1]

    peak = extra_memory(lambda: sum_over_rows(hidden, weight, loss, 1, 16)[0].backward()) - gradients
    assert peak < logits / 8
