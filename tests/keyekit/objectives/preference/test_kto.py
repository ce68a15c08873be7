import pytest
import torch

from keyekit.objectives.preference.base import Preferences
from keyekit.objectives.preference.kto import KTO


def by_hand(preferences, beta, point, good, bad):
    """Equation 8, response by response, the mean over responses."""
    losses = []
    for policy, reference in zip(preferences.chosen, preferences.reference_chosen, strict=True):
        losses.append(good * (1 - 1 / (1 + torch.exp(-(beta * (policy - reference) - point)))))
    for policy, reference in zip(preferences.rejected, preferences.reference_rejected, strict=True):
        losses.append(bad * (1 - 1 / (1 + torch.exp(-(point - beta * (policy - reference))))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("kind", "point"), [("zero", 0.0), ("batch", 0.3 * 1.5 / 6), ("mismatched", 0.3 * 2.0)])
def test_equals_its_formula(preferences, kind, point) -> None:
    preferences.mismatched = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = KTO(0.3, 1.2, 0.9, kind)(preferences).loss
    expected = by_hand(preferences, 0.3, point, 1.2, 0.9)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    leaves = (preferences.chosen, preferences.rejected)
    for ours, theirs in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_the_reference_point_is_never_below_zero(preferences) -> None:
    preferences.mismatched = torch.tensor([-5.0], dtype=torch.float64)
    assert KTO(reference_point="mismatched")(preferences).loss == KTO(reference_point="zero")(preferences).loss


def test_responses_need_not_come_in_pairs() -> None:
    def numbers(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64)

    lonely = Preferences(
        chosen=numbers().requires_grad_(),
        rejected=numbers(-3.0, -4.0).requires_grad_(),
        chosen_lengths=numbers(),
        rejected_lengths=numbers(2, 2),
        reference_chosen=numbers(),
        reference_rejected=numbers(-5.0, -3.5),
    )
    output = KTO(0.5, reference_point="zero")(lonely)
    torch.testing.assert_close(output.loss, by_hand(lonely, 0.5, 0.0, 1.0, 1.0))
    assert output.meters["margin"].item() == 0
    assert output.meters["rejected_reward"].item() == pytest.approx(0.5 * (2 - 0.5) / 2)


def test_bad_arguments_are_named(preferences) -> None:
    with pytest.raises(ValueError, match="reference_point='mean': choose mismatched, batch or zero"):
        KTO(reference_point="mean")
    with pytest.raises(ValueError, match=r"needs Preferences\.mismatched"):
        KTO(reference_point="mismatched")(preferences)
