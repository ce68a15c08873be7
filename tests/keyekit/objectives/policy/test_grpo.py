import pytest
import torch

from keyekit.objectives.policy.grpo import DAPO, GRPO, DrGRPO


def test_grpo_equals_its_formula_with_divergence_and_entropy(equals, rollouts, answers, clipped) -> None:
    total = torch.zeros((), dtype=torch.float64)
    for tokens, advantage in answers:
        for t in tokens:
            ratio = torch.exp(rollouts.log_probs[t] - rollouts.old_log_probs[t])
            away = rollouts.log_probs[t] - rollouts.reference_log_probs[t]
            divergence = torch.exp(-away) - 1 + away
            loss = clipped(ratio, advantage, 0.2, 0.3) + 0.04 * divergence - 0.01 * rollouts.entropies[t]
            total = total + loss / len(tokens) / 3
    equals(GRPO(0.2, 0.3, kl_weight=0.04, entropy_weight=0.01), total)


def test_dapo_is_a_mean_over_all_tokens_with_a_higher_upper_bound(equals, rollouts, answers, clipped) -> None:
    ratios = torch.exp(rollouts.log_probs - rollouts.old_log_probs)
    losses = [clipped(ratios[t], advantage, 0.2, 0.28) for tokens, advantage in answers for t in tokens]
    equals(DAPO(), sum(losses) / 8)


def test_dr_grpo_divides_by_one_length(equals, rollouts, answers, clipped) -> None:
    ratios = torch.exp(rollouts.log_probs - rollouts.old_log_probs)
    losses = [clipped(ratios[t], advantage, 0.2, 0.2) for tokens, advantage in answers for t in tokens]
    equals(DrGRPO(fixed_length=50), sum(losses) / (3 * 50))


def test_each_has_the_advantages_of_its_paper() -> None:
    rewards, groups = torch.tensor([1.0, 0.0, 0.0, 4.0]), torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(
        GRPO().advantages(rewards, groups).values, torch.tensor([1, -1, -1, 1]) / 2**0.5, atol=1e-5, rtol=0
    )
    assert DrGRPO().advantages(rewards, groups).values.tolist() == [0.5, -0.5, -2.0, 2.0]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="fixed_length=0"):
        DrGRPO(fixed_length=0)
    with pytest.raises(ValueError, match="clip_low=2"):
        GRPO(clip_low=2)
