"""Four answers of a pack in float64, one of them empty, and a loss by hand to compare with."""

from itertools import pairwise

import pytest
import torch

from keyekit.batch import Segments
from keyekit.objectives.policy.base import Rollouts

LENGTHS = (5, 3, 2, 4, 2)
"""Three answers of 3, 2 and 3 tokens, one whose answer is empty (third), and the tail."""
MASK = (0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0)
ADVANTAGES = (1.5, -0.5, 9.0, -1.0, 7.0)
"""Of the empty answer and the tail: numbers that must not matter."""


@pytest.fixture
def rollouts() -> Rollouts:
    generator = torch.Generator().manual_seed(0)

    def noise(scale: float) -> torch.Tensor:
        return scale * torch.randn(16, generator=generator, dtype=torch.float64)

    old = -1.5 + noise(0.3)
    log_probs = old + noise(0.4)
    # A good token beyond the upper bound, a bad one below the lower, and a bad one that became likelier.
    log_probs[2], log_probs[6], log_probs[7] = old[2] + 0.6, old[6] - 0.7, old[7] + 0.6
    return Rollouts(
        log_probs=log_probs.requires_grad_(),
        old_log_probs=old,
        advantages=torch.tensor(ADVANTAGES, dtype=torch.float64),
        mask=torch.tensor(MASK, dtype=torch.bool),
        segments=Segments.of(LENGTHS),
        reference_log_probs=old + noise(0.4),
        entropies=(2.0 + noise(0.2)).requires_grad_(),
    )


@pytest.fixture
def answers(rollouts):
    """Positions of the tokens of each answer that has any, and its advantage."""
    offsets = rollouts.segments.offsets.tolist()
    found = []
    for number, (start, stop) in enumerate(pairwise(offsets)):
        tokens = [i for i in range(start, stop) if rollouts.mask[i]]
        if tokens:
            found.append((tokens, ADVANTAGES[number]))
    assert [len(tokens) for tokens, _ in found] == [3, 2, 3]
    return found


@pytest.fixture
def equals(rollouts):
    """Compares loss and gradients of an objective with those of a scalar by hand."""

    def check(objective, expected) -> None:
        loss = objective(rollouts).loss
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
        leaves = (rollouts.log_probs, rollouts.entropies)
        for ours, theirs in zip(
            torch.autograd.grad(loss, leaves, materialize_grads=True),
            torch.autograd.grad(expected, leaves, materialize_grads=True, allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    return check


@pytest.fixture
def clipped():
    """The clipped loss of one ratio, case by case."""

    def loss(ratio, advantage, low, high):
        bounded = min(max(ratio.item(), 1 - low), 1 + high)
        if bounded * advantage < ratio.item() * advantage:
            return ratio.new_tensor(-bounded * advantage)
        return -ratio * advantage

    return loss
