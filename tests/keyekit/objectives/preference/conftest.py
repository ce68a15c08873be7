"""Three pairs of responses in float64, with leaves to differentiate by."""

import pytest
import torch

from keyekit.objectives.preference.base import Preferences


@pytest.fixture
def preferences() -> Preferences:
    """Rewards of both signs; lengths differ."""

    def numbers(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return Preferences(
        chosen=numbers(-12.0, -7.5, -30.0).requires_grad_(),
        rejected=numbers(-15.0, -6.0, -29.5).requires_grad_(),
        chosen_lengths=numbers(4, 5, 11),
        rejected_lengths=numbers(6, 2, 9),
        reference_chosen=numbers(-13.0, -7.0, -34.0),
        reference_rejected=numbers(-14.0, -6.5, -27.0),
    )


@pytest.fixture
def equals(preferences):
    """Compares loss and gradients of an objective with a mean of losses by hand, given for each pair as tensors."""

    def check(objective, by_hand) -> None:
        output = objective(preferences)
        expected = sum(by_hand(i) for i in range(3)) / 3
        torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=1e-12)
        leaves = (preferences.chosen, preferences.rejected)
        for ours, theirs in zip(
            torch.autograd.grad(output.loss, leaves, materialize_grads=True),
            torch.autograd.grad(expected, leaves, materialize_grads=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    return check
