"""What every policy objective has to fulfil."""

from __future__ import annotations

import math

import torch

from keyekit.batch import Segments
from keyekit.objectives.policy.base import Rollouts
from keyekit.testing.conformance.construction import make
from keyekit.testing.conformance.objective import check_has_no_weights

__all__ = ["CHECKS", "check_has_no_weights"]

CHECKS = (
    "check_has_no_weights",
    "check_follows_the_advantage",
    "check_ignores_what_is_not_masked",
    "check_reports_meters",
    "check_packs_add_up",
    "check_broken_rewards_teach_nothing",
    "check_an_empty_pack_costs_nothing",
)
"""Functions of this module that make up the suite."""

_METERS = {"ratio", "clip_fraction", "old_kl", "sequences", "tokens", "dropped_sequences"}
_MASK = (0, 1, 1, 1, 0, 0, 1, 1, 0)
_LENGTHS = (4, 4, 1)


def check_follows_the_advantage(cls: type) -> None:
    """Right after sampling, a step makes tokens of good answers likelier, of bad ones less likely, and no others."""
    given = _rollouts()
    make(cls)(given).loss.backward()
    assert given.log_probs.grad is not None, "no gradient reaches the log-probabilities"
    wanted = torch.tensor([0, -1, -1, -1, 0, 0, 1, 1, 0])
    found = given.log_probs.grad.sign().long()
    assert torch.equal(found, wanted), f"signs of the gradient are {found.tolist()}, not {wanted.tolist()}"


def check_ignores_what_is_not_masked(cls: type) -> None:
    """Prompts, observations of tools and the tail may hold anything."""
    given, poisoned = _rollouts(), _rollouts()
    with torch.no_grad():
        poisoned.log_probs[~poisoned.mask] = math.nan
        poisoned.old_log_probs[~poisoned.mask] = math.inf
    assert make(cls)(poisoned).loss == make(cls)(given).loss, "a token outside the mask changes the loss"


def check_reports_meters(cls: type) -> None:
    """Ratio, clip fraction, divergence and counts are there, finite and without a gradient."""
    output = make(cls)(_rollouts())
    missing = _METERS - output.meters.keys()
    assert not missing, f"meters lacks {', '.join(sorted(missing))}"
    bad = [name for name, value in output.meters.items() if value.requires_grad or not value.isfinite()]
    assert not bad, f"not detached or not finite: {', '.join(bad)}"
    assert output.loss.shape == (), f"the loss has the shape {tuple(output.loss.shape)}"


def check_packs_add_up(cls: type) -> None:
    """With the count of the step as ``total``, the losses of two packs add up to the loss of both in one."""
    objective, whole = make(cls), _rollouts()
    packs = []
    for tokens, sequences in ((slice(0, 4), slice(0, 1)), (slice(4, 9), slice(1, 3))):
        packs.append(
            Rollouts(
                log_probs=whole.log_probs[tokens],
                old_log_probs=whole.old_log_probs[tokens],
                advantages=whole.advantages[sequences],
                mask=whole.mask[tokens],
                segments=Segments.of(_LENGTHS[sequences]),
            )
        )
    total = sum(objective.count(pack) for pack in packs)
    summed = torch.stack([objective(pack, total).loss for pack in packs]).sum()
    assert torch.allclose(summed, objective(whole).loss), "the losses of the packs do not add up to that of the step"


def check_broken_rewards_teach_nothing(cls: type) -> None:
    """Advantages are finite and 0 for NaN and infinite rewards, which are counted and change no other advantage."""
    objective, groups = make(cls), torch.tensor([0, 0, 1, 1])
    rewards = torch.tensor([1.0, 0.0, 3.0, -1.0])
    plain = objective.advantages(rewards, groups)
    given = torch.cat([rewards, torch.tensor([math.nan, math.inf])])
    broken = objective.advantages(given, torch.cat([groups, torch.tensor([0, 1])]))
    assert broken.values.isfinite().all(), "an advantage is no number"
    assert torch.allclose(broken.values[:4], plain.values), "a broken reward changes the advantages of others"
    assert not broken.kept[4:].any(), "a broken reward is kept"
    assert broken.num_broken == 2, f"2 broken rewards are counted as {broken.num_broken}"


def check_an_empty_pack_costs_nothing(cls: type) -> None:
    """A pack without an answer has a loss of 0 that can be differentiated, so that no rank hangs."""
    given = _rollouts()
    given.mask = torch.zeros_like(given.mask)
    loss = make(cls)(given).loss
    loss.backward()
    assert loss.item() == 0, f"a pack without an answer costs {loss.item()}"


def _rollouts() -> Rollouts:
    """A good answer, a bad one and the tail, just sampled."""
    old = -1 - torch.rand(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Rollouts(
        log_probs=old.clone().requires_grad_(),
        old_log_probs=old,
        advantages=torch.tensor([1.0, -0.5, 3.0], dtype=torch.float64),
        mask=torch.tensor(_MASK, dtype=torch.bool),
        segments=Segments.of(_LENGTHS),
    )
