import pytest
import torch

from keyekit.objectives.preference.bco import BCO


@pytest.mark.parametrize("delta", [0.0, 0.3])
def test_equals_its_formula(equals, preferences, delta) -> None:
    objective = BCO(beta=0.2, momentum=0.5).double()
    objective.update(torch.tensor(2 * delta, dtype=torch.float64))
    assert objective.delta.item() == pytest.approx(delta)

    def by_hand(i: int) -> torch.Tensor:
        chosen = 0.2 * (preferences.chosen[i] - preferences.reference_chosen[i])
        rejected = 0.2 * (preferences.rejected[i] - preferences.reference_rejected[i])
        return -torch.log(1 / (1 + torch.exp(-(chosen - delta)))) - torch.log(1 / (1 + torch.exp(rejected - delta)))

    equals(objective, by_hand)


def test_the_threshold_is_a_running_mean_that_only_update_moves(preferences) -> None:
    objective = BCO(momentum=0.9)
    first = objective(preferences).loss
    assert objective(preferences).loss == first
    expected = 0.0
    for reward in (1.0, -2.0, 4.0):
        objective.update(torch.tensor(reward))
        expected = 0.9 * expected + 0.1 * reward
    assert objective.delta.item() == pytest.approx(expected)
    again = BCO(momentum=0.9)
    again.load_state_dict(objective.state_dict())
    assert again.delta == objective.delta


def test_a_broken_mean_leaves_the_threshold(preferences) -> None:
    objective = BCO()
    objective.update(torch.tensor(float("nan")))
    objective.update(torch.tensor(float("inf")))
    assert objective.delta.item() == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="momentum=2"):
        BCO(momentum=2)
    with pytest.raises(ValueError, match="beta=0"):
        BCO(beta=0)
