import torch

from keyekit.objectives.preference.supervised import SFT


def test_equals_its_formula(equals, preferences) -> None:
    equals(SFT(), lambda i: -preferences.chosen[i] / preferences.chosen_lengths[i])


def test_rejected_responses_and_the_reference_do_not_matter(preferences) -> None:
    loss = SFT()(preferences).loss
    preferences.rejected = preferences.rejected - 100
    preferences.reference_chosen = preferences.reference_rejected = None
    assert SFT()(preferences).loss == loss


def test_an_empty_response_costs_nothing(preferences) -> None:
    preferences.chosen = torch.zeros(3, dtype=torch.float64)
    preferences.chosen_lengths = torch.zeros(3, dtype=torch.float64)
    assert SFT()(preferences).loss.item() == 0
