import pytest
import torch

from keyekit.objectives.preference.bco import BCO
from keyekit.objectives.preference.dpo import DPO
from keyekit.objectives.preference.mpo import MPO
from keyekit.objectives.preference.supervised import SFT


def test_equals_its_formula_with_the_published_weights(equals, preferences) -> None:
    """Keye-VL 8B sheet 5.3: 0.8 L_p + 0.2 L_q + 1.0 L_g, beta = 0.1; the threshold at 0.05."""
    objective = MPO(momentum=0.5).double()
    objective.update(torch.tensor(0.1))

    def by_hand(i: int) -> torch.Tensor:
        chosen = 0.1 * (preferences.chosen[i] - preferences.reference_chosen[i])
        rejected = 0.1 * (preferences.rejected[i] - preferences.reference_rejected[i])
        preference = torch.log(1 + torch.exp(rejected - chosen))
        delta = float(torch.tensor(0.1) / 2)
        quality = torch.log(1 + torch.exp(-(chosen - delta))) + torch.log(1 + torch.exp(rejected - delta))
        return 0.8 * preference + 0.2 * quality - preferences.chosen[i] / preferences.chosen_lengths[i]

    equals(objective, by_hand)


def test_it_is_the_sum_of_its_parts_and_says_what_each_is(preferences) -> None:
    output = MPO(0.3, 2.0, 3.0, 5.0)(preferences)
    parts = {
        "dpo": 2.0 * DPO(0.3)(preferences).loss,
        "bco": 3.0 * BCO(0.3)(preferences).loss,
        "sft": 5.0 * SFT()(preferences).loss,
    }
    for name, part in parts.items():
        torch.testing.assert_close(output.meters[name], part.detach())
    torch.testing.assert_close(output.loss, sum(parts.values()))
    assert output.meters["accuracy"].item() == pytest.approx(2 / 3)


def test_its_threshold_is_saved(preferences) -> None:
    objective, again = MPO(), MPO()
    objective.update(torch.tensor(3.0))
    again.load_state_dict(objective.state_dict())
    assert again(preferences).loss == objective(preferences).loss != MPO()(preferences).loss
