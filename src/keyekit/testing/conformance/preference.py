"""What every preference objective has to fulfil."""

from __future__ import annotations

import torch

from keyekit.objectives.preference.base import Preferences
from keyekit.testing.conformance.construction import make
from keyekit.testing.conformance.objective import check_has_no_weights

__all__ = ["CHECKS", "check_has_no_weights"]

CHECKS = (
    "check_has_no_weights",
    "check_prefers_the_chosen",
    "check_reports_meters",
    "check_packs_add_up",
    "check_an_empty_pack_costs_nothing",
    "check_no_gradient_into_the_reference",
)
"""Functions of this module that make up the suite."""

_METERS = {"accuracy", "margin", "chosen_reward", "rejected_reward"}


def check_prefers_the_chosen(cls: type) -> None:
    """A step makes every chosen response likelier and no rejected one."""
    given = _preferences()
    make(cls)(given).loss.backward()
    assert given.chosen.grad is not None, "no gradient reaches the chosen responses"
    assert (given.chosen.grad < 0).all(), "a step would make a chosen response less likely"
    assert given.rejected.grad is None or (given.rejected.grad >= 0).all(), "a step would make a rejected one likelier"


def check_reports_meters(cls: type) -> None:
    """Accuracy, margin and both rewards are there, finite and without a gradient."""
    output = make(cls)(_preferences())
    missing = _METERS - output.meters.keys()
    assert not missing, f"meters lacks {', '.join(sorted(missing))}"
    bad = [name for name, value in output.meters.items() if value.requires_grad or not value.isfinite()]
    assert not bad, f"not detached or not finite: {', '.join(bad)}"
    assert output.loss.shape == (), f"the loss has the shape {tuple(output.loss.shape)}"


def check_packs_add_up(cls: type) -> None:
    """With the count of the step as ``total``, the losses of two packs add up to the loss of both in one."""
    objective, whole = make(cls), _preferences()
    if getattr(objective, "reference_point", None) == "batch":
        objective.reference_point = "zero"  # a statistic of the pack: no pack knows that of the other
    packs = [_preferences(slice(0, 1)), _preferences(slice(1, 4))]
    total = sum(objective.count(pack) for pack in packs)
    summed = torch.stack([objective(pack, total).loss for pack in packs]).sum()
    assert torch.allclose(summed, objective(whole).loss), "the losses of the packs do not add up to that of the step"


def check_an_empty_pack_costs_nothing(cls: type) -> None:
    """A pack without a pair has a loss of 0 that can be differentiated, so that no rank hangs."""
    given = _preferences(slice(0, 0))
    loss = make(cls)(given).loss
    loss.backward()
    assert loss.item() == 0, f"a pack without a pair costs {loss.item()}"


def check_no_gradient_into_the_reference(cls: type) -> None:
    """The reference is frozen even if somebody forgot to switch its gradients off."""
    given = _preferences()
    assert given.reference_chosen is not None
    given.reference_chosen.requires_grad_()
    make(cls)(given).loss.backward()
    assert given.reference_chosen.grad is None, "a gradient reaches the reference"


def _preferences(part: slice = slice(None)) -> Preferences:
    """Pairs near the reference, where no objective has reached its margin."""
    generator = torch.Generator().manual_seed(0)

    def numbers(offset: float, scale: float) -> torch.Tensor:
        return (offset + scale * torch.rand(4, generator=generator, dtype=torch.float64))[part]

    reference, other = numbers(-20, 5), numbers(-20, 5)
    return Preferences(
        chosen=(reference + 0.1).requires_grad_(),
        rejected=(other - 0.1).requires_grad_(),
        chosen_lengths=numbers(5, 3).round(),
        rejected_lengths=numbers(5, 3).round(),
        reference_chosen=reference,
        reference_rejected=other,
        mismatched=torch.zeros_like(reference),
    )
