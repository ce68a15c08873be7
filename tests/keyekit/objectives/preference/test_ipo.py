import pytest

from keyekit.objectives.preference.ipo import IPO


@pytest.mark.parametrize("normalised", [True, False])
def test_equals_its_formula(equals, preferences, normalised) -> None:
    beta = 0.4

    def by_hand(i: int):
        chosen = preferences.chosen[i] - preferences.reference_chosen[i]
        rejected = preferences.rejected[i] - preferences.reference_rejected[i]
        if normalised:
            chosen, rejected = chosen / preferences.chosen_lengths[i], rejected / preferences.rejected_lengths[i]
        return (chosen - rejected - 1 / (2 * beta)) ** 2

    equals(IPO(beta, normalised), by_hand)


def test_a_margin_that_is_reached_costs_nothing(preferences) -> None:
    preferences.chosen = preferences.reference_chosen + 2.0
    preferences.rejected = preferences.reference_rejected.clone()
    assert IPO(beta=0.25, length_normalised=False)(preferences).loss.item() == 0
    preferences.chosen += 1.0  # passed: it costs again
    assert IPO(beta=0.25, length_normalised=False)(preferences).loss.item() == pytest.approx(1.0)


def test_beta_must_be_positive() -> None:
    with pytest.raises(ValueError, match="beta=-1"):
        IPO(beta=-1)
