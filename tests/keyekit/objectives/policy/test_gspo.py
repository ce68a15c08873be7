import pytest
import torch

from keyekit.objectives.policy.gspo import GSPO


@pytest.mark.parametrize(("low", "high"), [(3e-4, 4e-4), (0.1, 0.2), (1.0, 9.0)])
def test_equals_its_formula(equals, rollouts, answers, clipped, low, high) -> None:
    losses = []
    for tokens, advantage in answers:
        ratio = torch.exp(sum(rollouts.log_probs[t] - rollouts.old_log_probs[t] for t in tokens) / len(tokens))
        losses.append(clipped(ratio, advantage, low, high))
    assert (GSPO().clip_low, GSPO().clip_high) == (3e-4, 4e-4)
    expected = sum(losses) / 3
    if expected.requires_grad:
        equals(GSPO(low, high), expected)
    else:  # every answer is cut off
        torch.testing.assert_close(GSPO(low, high)(rollouts).loss, expected)


def test_a_token_moves_the_ratio_of_its_whole_answer(rollouts) -> None:
    rollouts.log_probs = rollouts.old_log_probs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(GSPO()(rollouts).loss, rollouts.log_probs)
    expected = torch.zeros(16, dtype=torch.float64)
    expected[2:5], expected[6:8], expected[11:14] = -1.5 / 9, 0.5 / 6, 1.0 / 9
    torch.testing.assert_close(gradient, expected)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="clip_high=-1"):
        GSPO(clip_high=-1)
