import pytest
import torch

from keyekit.objectives.policy.advantages import whiten
from keyekit.objectives.policy.reinforce import RLOO, ReinforcePlusPlus


def test_rloo_equals_its_formula(equals, rollouts, answers, clipped) -> None:
    losses = []
    for tokens, advantage in answers:
        ratio = torch.exp(sum(rollouts.log_probs[t] - rollouts.old_log_probs[t] for t in tokens))
        losses.append(clipped(ratio, advantage, 0.3, 0.5))
    equals(RLOO(0.3, 0.5), sum(losses) / 3)


def test_rloo_after_sampling_is_reinforce_with_the_others_as_baseline(rollouts) -> None:
    rollouts.log_probs = rollouts.old_log_probs.clone().requires_grad_()
    found = RLOO().advantages(torch.tensor([1.0, 0.0, 2.0]), torch.zeros(3, dtype=torch.int64))
    assert found.values.tolist() == [0.0, -1.5, 1.5]
    (gradient,) = torch.autograd.grad(RLOO()(rollouts).loss, rollouts.log_probs)
    expected = torch.zeros(16, dtype=torch.float64)
    expected[2:5], expected[6:8], expected[11:14] = -1.5 / 3, 0.5 / 3, 1.0 / 3  # every token of an answer the same
    torch.testing.assert_close(gradient, expected)


def test_reinforce_plus_plus_equals_its_formula(equals, rollouts, answers, clipped) -> None:
    ratios = torch.exp(rollouts.log_probs - rollouts.old_log_probs)
    losses = [clipped(ratios[t], advantage, 0.2, 0.2) for tokens, advantage in answers for t in tokens]
    equals(ReinforcePlusPlus(), sum(losses) / 8)


def test_its_advantages_are_normalised_over_the_batch() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 5.0, 2.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    everything = torch.ones(4, dtype=torch.bool)
    torch.testing.assert_close(ReinforcePlusPlus().advantages(rewards, groups).values, whiten(rewards, everything))
    centred = torch.tensor([0.5, -0.5, 1.5, -1.5], dtype=torch.float64)
    found = ReinforcePlusPlus(baseline="mean").advantages(rewards, groups).values
    torch.testing.assert_close(found, centred / (centred.std() + 1e-6))


def test_a_divergence_in_the_reward_leaves_the_deviation_to_whitening() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 5.0, 2.0], dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    found = ReinforcePlusPlus(baseline="mean", reward_kl=0.3).advantages(rewards, groups).values
    assert found.tolist() == [0.5, -0.5, 1.5, -1.5]
    assert ReinforcePlusPlus(reward_kl=0.3).advantages(rewards, groups).values.tolist() == [-1.0, -2.0, 3.0, 0.0]
    needs = [ReinforcePlusPlus(**settings).needs_reference for settings in ({}, {"reward_kl": 0.3}, {"kl_weight": 0.1})]
    assert needs == [False, True, True]


def test_a_divergence_in_the_reward_reaches_the_tokens_before_it(rollouts, answers) -> None:
    rewards = torch.tensor([1.0, 0.0, 9.0, 2.0, 9.0], dtype=torch.float64)
    returns = torch.zeros(16, dtype=torch.float64)
    for (tokens, _), reward in zip(answers, (1.0, 0.0, 2.0), strict=True):
        for t in tokens:
            later = [i for i in tokens if i >= t]
            costs = [rollouts.old_log_probs[i] - rollouts.reference_log_probs[i] for i in later]
            returns[t] = reward - 0.3 * sum(costs)
    found = ReinforcePlusPlus(reward_kl=0.3).token_advantages(rewards, rollouts)
    torch.testing.assert_close(found, whiten(returns, rollouts.mask))
    rollouts.advantages = found  # one a token is as good as one a segment
    assert ReinforcePlusPlus()(rollouts).loss.isfinite()


def test_bad_arguments_are_named(rollouts) -> None:
    with pytest.raises(ValueError, match="baseline='none'"):
        ReinforcePlusPlus(baseline="none")
    rollouts.reference_log_probs = None
    with pytest.raises(ValueError, match="token_advantages needs"):
        ReinforcePlusPlus().token_advantages(torch.zeros(5), rollouts)
