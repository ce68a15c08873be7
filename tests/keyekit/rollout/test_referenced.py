"""What each token's divergence costs, over all packs of a step, against loops."""

from __future__ import annotations

import math
import statistics
from dataclasses import fields

import pytest
import torch

from keyekit.batch import Batch
from keyekit.objectives.policy.reinforce import ReinforcePlusPlus
from keyekit.objectives.sequences import spread
from keyekit.rollout.experience import Experience
from keyekit.rollout.referenced import with_token_advantages
from keyekit.testing.tiny import tiny_batch


@pytest.fixture
def packs() -> list[Experience]:
    found = []
    for seed in range(2):
        batch = tiny_batch(lengths=(9, 7), grids=(None, None), tail=3, seed=seed)
        random = torch.Generator().manual_seed(seed)
        found.append(
            Experience(
                **{entry.name: getattr(batch, entry.name) for entry in fields(Batch)},
                old_log_probs=torch.randn(batch.tokens.shape, generator=random) - 4,
                advantages=spread(torch.randn(len(batch.segments), generator=random), batch.segments),
                step_count=4.0,
            )
        )
    return found


def said_of(packs: list[Experience]) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [pack.old_log_probs + 0.3 * torch.randn(pack.old_log_probs.shape) for pack in packs]


def test_advantages_equal_loops_over_the_tokens_of_all_packs(packs) -> None:
    said = said_of(packs)
    found = with_token_advantages(packs, said, ReinforcePlusPlus(reward_kl=0.4), lambda own: own)
    returns = []
    for pack, known in zip(packs, said, strict=True):
        for one in pack.samples:
            tokens = [t for t in range(one.start, one.stop) if pack.mask[t]]
            costs = [0.4 * (pack.old_log_probs[t] - known[t]).item() for t in tokens]
            returns += [pack.advantages[t].item() - sum(costs[n:]) for n, t in enumerate(tokens)]
    mean, deviation = statistics.mean(returns), statistics.stdev(returns)
    expected = [(value - mean) / deviation for value in returns]
    assert len(expected) > 10
    assert torch.cat([pack.advantages[pack.mask] for pack in found]).tolist() == pytest.approx(expected, abs=1e-4)
    for pack, known in zip(found, said, strict=True):
        assert not pack.advantages[~pack.mask].any()
        assert pack.to("cpu").reference_log_probs is known
        assert pack.step_count == 4.0


def test_an_answer_that_the_reference_has_no_number_for_does_not_poison_the_others(packs) -> None:
    said = said_of(packs)
    broken = packs[0].samples[0]
    inside = torch.zeros_like(packs[0].mask)
    inside[broken.start : broken.stop] = True
    said[0][(inside & packs[0].mask).nonzero()[-1]] = math.nan
    first, second = with_token_advantages(packs, said, ReinforcePlusPlus(reward_kl=0.4), lambda own: own)
    assert not first.advantages[inside].any()
    others = torch.cat([first.advantages[first.mask & ~inside], second.advantages[second.mask]])
    assert others.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert others.std().item() == pytest.approx(1.0, abs=1e-4)
