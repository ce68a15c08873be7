import pytest
import torch

from keyekit.objectives.preference.dpo import DPO


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.7, 0.2)])
def test_equals_its_formula(equals, preferences, beta, smoothing) -> None:
    def by_hand(i: int) -> torch.Tensor:
        chosen = beta * (preferences.chosen[i] - preferences.reference_chosen[i])
        rejected = beta * (preferences.rejected[i] - preferences.reference_rejected[i])
        right = 1 / (1 + torch.exp(-(chosen - rejected)))
        return -(1 - smoothing) * torch.log(right) - smoothing * torch.log(1 - right)

    equals(DPO(beta, smoothing), by_hand)


def test_a_step_widens_the_margin(preferences) -> None:
    chosen, rejected = torch.autograd.grad(DPO()(preferences).loss, (preferences.chosen, preferences.rejected))
    assert (chosen < 0).all()  # descending raises the good ones
    assert (rejected > 0).all()


def test_extreme_margins_stay_finite(preferences) -> None:
    preferences.reference_chosen += 1e6
    loss = DPO()(preferences).loss
    assert loss.isfinite()
    assert all(part.isfinite().all() for part in torch.autograd.grad(loss, (preferences.chosen, preferences.rejected)))


def test_bad_arguments_are_named(preferences) -> None:
    with pytest.raises(ValueError, match="beta=0 must be positive"):
        DPO(beta=0)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.5"):
        DPO(label_smoothing=0.5)
    preferences.rejected = preferences.rejected[:2]
    preferences.reference_rejected = preferences.reference_rejected[:2]
    with pytest.raises(ValueError, match="3 chosen and 2 rejected responses are no pairs"):
        DPO()(preferences)
