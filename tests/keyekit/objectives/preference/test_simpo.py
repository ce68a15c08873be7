import pytest
import torch

from keyekit.objectives.preference.simpo import SimPO


def test_equals_its_formula(equals, preferences) -> None:
    beta, gamma = 2.5, 0.6

    def by_hand(i: int) -> torch.Tensor:
        chosen = beta * preferences.chosen[i] / preferences.chosen_lengths[i]
        rejected = beta * preferences.rejected[i] / preferences.rejected_lengths[i]
        return torch.log(1 + torch.exp(-(chosen - rejected - gamma)))

    equals(SimPO(beta, gamma), by_hand)


def test_it_needs_no_reference(preferences) -> None:
    loss = SimPO()(preferences).loss
    preferences.reference_chosen = preferences.reference_rejected = None
    assert SimPO()(preferences).loss == loss
    assert not SimPO.needs_reference


def test_beta_must_be_positive() -> None:
    with pytest.raises(ValueError, match="beta=0"):
        SimPO(beta=0)
