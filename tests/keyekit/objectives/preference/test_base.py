"""Pairs read from a pack, meters, totals and what is refused."""

import pytest
import torch

from keyekit.batch import Segments
from keyekit.objectives.preference.base import Preferences
from keyekit.objectives.preference.dpo import DPO


def test_pairs_are_read_from_a_pack_with_an_empty_response_and_a_tail() -> None:
    segments = Segments.of([3, 2, 4, 1, 2])  # two pairs and the tail
    mask = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0], dtype=torch.bool)
    log_probs = -torch.arange(1.0, 13.0, dtype=torch.float64).requires_grad_()
    reference = torch.where(mask, 2 * log_probs.detach(), torch.nan)  # outside the mask anything may stand
    pairs = Preferences.of_pack(log_probs, mask, segments, num_pairs=2, reference=reference)
    assert pairs.chosen.tolist() == [-5.0, -17.0]
    assert pairs.rejected.tolist() == [-5.0, 0.0]
    assert pairs.chosen_lengths.tolist() == [2, 2]
    assert pairs.rejected_lengths.tolist() == [1, 0]
    assert pairs.reference_chosen.tolist() == [-10.0, -34.0]
    (gradient,) = torch.autograd.grad(pairs.chosen.sum() + pairs.rejected.sum(), log_probs)
    assert gradient.tolist() == mask.double().tolist()
    assert pairs.means()[1].tolist() == [-5.0, 0.0]


def test_meters(preferences) -> None:
    output = DPO(beta=0.5)(preferences)
    # Log-ratios: chosen 1, -0.5, 4; rejected -1, 0.5, -2.5.
    assert output.meters["accuracy"].item() == pytest.approx(2 / 3)
    assert output.meters["margin"].item() == pytest.approx(0.5 * (2 - 1 + 6.5) / 3)
    assert output.meters["chosen_reward"].item() == pytest.approx(0.5 * 4.5 / 3)
    assert output.meters["rejected_reward"].item() == pytest.approx(0.5 * -3 / 3)
    assert not any(value.requires_grad for value in output.meters.values())
    assert output.chosen_rewards.tolist() == [0.5, -0.25, 2.0]


def test_packs_of_a_step_add_up_to_the_step(preferences) -> None:
    def some(part: slice) -> Preferences:
        names = preferences.__dataclass_fields__
        given = {name: getattr(preferences, name) for name in names}
        return Preferences(**{name: None if value is None else value[part] for name, value in given.items()})

    whole = DPO()(preferences).loss
    split = DPO()(some(slice(0, 1)), total=3).loss + DPO()(some(slice(1, 3)), total=3).loss
    torch.testing.assert_close(split, whole)


def test_no_pair_is_a_zero_that_can_be_differentiated() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    empty = Preferences(
        chosen=nothing,
        rejected=nothing,
        chosen_lengths=nothing.detach(),
        rejected_lengths=nothing.detach(),
        reference_chosen=nothing.detach(),
        reference_rejected=nothing.detach(),
    )
    output = DPO()(empty)
    output.loss.backward()
    assert output.loss.item() == 0
    assert all(value.isfinite() for value in output.meters.values())


def test_no_gradient_reaches_the_reference(preferences) -> None:
    preferences.reference_chosen.requires_grad_()
    DPO()(preferences).loss.backward()
    assert preferences.reference_chosen.grad is None


def test_what_does_not_fit_is_refused(preferences) -> None:
    preferences.reference_rejected = None
    with pytest.raises(ValueError, match="give reference log-probabilities, or choose one without"):
        DPO()(preferences)
    with pytest.raises(ValueError, match=r"chosen responses have the shapes \(3,\), \(2,\)"):
        Preferences(
            chosen=torch.zeros(3),
            rejected=torch.zeros(3),
            chosen_lengths=torch.zeros(2),
            rejected_lengths=torch.zeros(3),
        )
    with pytest.raises(ValueError, match="2 pairs are 4 segments, the pack has 3"):
        Preferences.of_pack(torch.zeros(3), torch.ones(3, dtype=torch.bool), Segments.of([1, 1, 1]), num_pairs=2)
