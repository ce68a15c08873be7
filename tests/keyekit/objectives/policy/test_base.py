"""What all policy objectives share: masks, totals, meters, divergence forms, and numbers that are none."""

import math

import pytest
import torch

from keyekit.batch import Segments
from keyekit.objectives.policy.base import Rollouts
from keyekit.objectives.policy.cispo import CISPO
from keyekit.objectives.policy.grpo import DAPO, GRPO, DrGRPO
from keyekit.objectives.policy.gspo import GSPO
from keyekit.objectives.policy.reinforce import RLOO, ReinforcePlusPlus

OBJECTIVES = [GRPO, DAPO, DrGRPO, GSPO, CISPO, RLOO, ReinforcePlusPlus]
EACH = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda cls: cls.__name__)


@EACH
def test_what_is_outside_the_mask_does_not_matter(objective, rollouts) -> None:
    expected = objective()(rollouts)
    for name in ("log_probs", "old_log_probs", "reference_log_probs", "entropies"):
        setattr(rollouts, name, torch.where(rollouts.mask, getattr(rollouts, name), torch.nan))
    rollouts.advantages = rollouts.advantages.where(torch.tensor([1, 1, 0, 1, 0], dtype=torch.bool), torch.inf)
    found = objective()(rollouts)
    assert found.loss == expected.loss
    assert found.meters == expected.meters


@EACH
def test_an_answer_with_a_broken_number_is_dropped_and_counted(objective, rollouts) -> None:
    without = objective()(rollouts.keep(torch.tensor([True, False, True, True, True])))
    for name, place, value in (
        ("old_log_probs", 7, math.nan),
        ("reference_log_probs", 6, -math.inf),
        ("advantages", 1, math.nan),
    ):
        whole = getattr(rollouts, name).clone()
        broken = whole.clone()
        broken[place] = value
        setattr(rollouts, name, broken)
        output = objective()(rollouts)
        (gradient,) = torch.autograd.grad(output.loss, rollouts.log_probs)
        torch.testing.assert_close(output.loss, without.loss)
        assert gradient.isfinite().all()
        assert not gradient[5:8].any()
        assert output.meters["dropped_sequences"].item() == 1
        assert objective().count(rollouts) == (6 if objective().normalisation == "token" else 2)
        setattr(rollouts, name, whole)


@EACH
def test_packs_of_a_step_add_up_to_the_step(objective, rollouts) -> None:
    def pack(tokens: slice, sequences: slice) -> Rollouts:
        return Rollouts(
            log_probs=rollouts.log_probs[tokens],
            old_log_probs=rollouts.old_log_probs[tokens],
            advantages=rollouts.advantages[sequences],
            mask=rollouts.mask[tokens],
            segments=Segments.of(rollouts.segments.lengths[sequences]),
        )

    packs = [pack(slice(0, 8), slice(0, 2)), pack(slice(8, 16), slice(2, 5))]
    total = sum(objective().count(part) for part in packs)
    torch.testing.assert_close(sum(objective()(part, total).loss for part in packs), objective()(rollouts).loss)


@EACH
def test_nothing_masked_is_a_zero_that_can_be_differentiated(objective, rollouts) -> None:
    rollouts.mask = torch.zeros_like(rollouts.mask)
    output = objective()(rollouts)
    (gradient,) = torch.autograd.grad(output.loss, rollouts.log_probs)
    assert output.loss.item() == 0
    assert not gradient.any()
    assert all(value.isfinite() for value in output.meters.values())


@EACH
def test_a_policy_that_ran_away_gives_finite_numbers(objective, rollouts) -> None:
    rollouts.log_probs = (rollouts.old_log_probs + 1e5).requires_grad_()
    output = objective()(rollouts)
    assert output.loss.isfinite()
    assert torch.autograd.grad(output.loss, rollouts.log_probs)[0].isfinite().all()


def test_meters_equal_loops(rollouts, answers) -> None:
    meters = GRPO(clip_low=0.2, clip_high=0.1)(rollouts).meters
    rollouts.log_probs, rollouts.entropies = rollouts.log_probs.detach(), rollouts.entropies.detach()
    tokens = [(t, advantage) for tokens, advantage in answers for t in tokens]
    ratios = [math.exp(rollouts.log_probs[t] - rollouts.old_log_probs[t]) for t, _ in tokens]
    low = sum(r < 0.8 and a < 0 for r, (_, a) in zip(ratios, tokens, strict=True)) / 8
    high = sum(r > 1.1 and a > 0 for r, (_, a) in zip(ratios, tokens, strict=True)) / 8
    assert low > 0
    assert high > 0
    away = [(rollouts.log_probs[t] - rollouts.reference_log_probs[t]).item() for t, _ in tokens]
    expected = {
        "ratio": sum(ratios) / 8,
        "clip_low": low,
        "clip_high": high,
        "clip_fraction": low + high,
        "old_kl": sum(r - 1 - math.log(r) for r in ratios) / 8,
        "kl": sum(math.exp(-r) - 1 + r for r in away) / 8,
        "entropy": sum(rollouts.entropies[t].item() for t, _ in tokens) / 8,
        "sequences": 3,
        "tokens": 8,
        "dropped_sequences": 0,
    }
    assert {name: value.item() for name, value in meters.items()} == pytest.approx(expected)
    assert not any(value.requires_grad for value in meters.values())


def test_an_exact_divergence_is_taken_as_given(rollouts) -> None:
    rollouts.reference_kl = torch.rand(16, dtype=torch.float64, requires_grad=True)
    loss = DAPO(kl_weight=0.5, kl_form="full")(rollouts).loss - DAPO()(rollouts).loss
    torch.testing.assert_close(loss, 0.5 * rollouts.reference_kl[rollouts.mask].mean())
    (gradient,) = torch.autograd.grad(loss, rollouts.reference_kl)
    torch.testing.assert_close(gradient, 0.5 / 8 * rollouts.mask.double())


def test_entropies_that_are_only_measured_have_no_gradient(rollouts) -> None:
    output = GRPO()(rollouts)
    assert "entropy" in output.meters
    assert torch.autograd.grad(output.loss, rollouts.entropies, allow_unused=True) == (None,)


def test_what_is_missing_is_named(rollouts) -> None:
    rollouts.reference_log_probs = rollouts.entropies = None
    with pytest.raises(ValueError, match=r"kl_weight=0\.1 in the form 'k3' needs Rollouts\.reference_log_probs"):
        GRPO(kl_weight=0.1)(rollouts)
    with pytest.raises(ValueError, match=r"in the form 'full' needs Rollouts\.reference_kl"):
        GRPO(kl_weight=0.1, kl_form="full")(rollouts)
    with pytest.raises(ValueError, match=r"entropy_weight=0\.1 needs Rollouts\.entropies"):
        GRPO(entropy_weight=0.1)(rollouts)
    with pytest.raises(ValueError, match="kl_form='k4': choose k1, k2, k3 or full"):
        GRPO(kl_form="k4")
    with pytest.raises(ValueError, match="normalisation='group'"):
        GRPO(normalisation="group")


def test_shapes_that_do_not_fit_are_named(rollouts) -> None:
    given = {name: getattr(rollouts, name) for name in ("log_probs", "old_log_probs", "advantages", "mask", "segments")}
    with pytest.raises(ValueError, match=r"old_log_probs has the shape \(15,\), the segments hold 16 tokens"):
        Rollouts(**given | {"old_log_probs": torch.zeros(15)})
    with pytest.raises(ValueError, match=r"advantages have the shape \(4,\): give one for each of the 5 segments"):
        Rollouts(**given | {"advantages": torch.zeros(4)})
