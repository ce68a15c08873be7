"""Chunked cross-entropy against PyTorch's, with gradients."""

import pytest
import torch
from torch.nn import functional

from keyekit.objectives.cross_entropy import CrossEntropy


@pytest.mark.parametrize("chunk_size", [3, 4, 100])
def test_equals_the_plain_loss(chunk_size: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 30, (20,))
    labels[torch.randperm(20)[:9]] = -100
    ours = CrossEntropy(chunk_size)(hidden, weight, labels, num_targets=11)
    theirs = functional.cross_entropy((hidden @ weight.T).float(), labels, ignore_index=-100, reduction="sum")
    torch.testing.assert_close(ours, theirs)
    mine = torch.autograd.grad(ours, (hidden, weight))
    other = torch.autograd.grad(theirs, (hidden, weight))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b)


def test_no_target_is_a_zero_that_can_be_differentiated() -> None:
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    loss = CrossEntropy()(hidden, weight, torch.full((4,), -100), num_targets=0)
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()


def test_chunk_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="chunk_size=0"):
        CrossEntropy(0)
