import pytest
import torch

from keyekit.objectives.policy.cispo import CISPO


def test_equals_its_formula(equals, rollouts, answers) -> None:
    losses = []
    for tokens, advantage in answers:
        for t in tokens:
            ratio = torch.exp(rollouts.log_probs[t] - rollouts.old_log_probs[t]).item()
            losses.append(-min(max(ratio, 1 - 0.1), 1 + 0.2) * advantage * rollouts.log_probs[t])
    equals(CISPO(0.1, 0.2), sum(losses) / 8)


def test_a_token_beyond_the_bound_keeps_a_gradient(rollouts) -> None:
    rollouts.log_probs = (rollouts.old_log_probs + 3.0).requires_grad_()
    output = CISPO()(rollouts)
    (gradient,) = torch.autograd.grad(output.loss, rollouts.log_probs)
    assert gradient[2].item() == pytest.approx(-5.0 * 1.5 / 8)
    assert output.meters["clip_high"].item() == 1
    assert output.meters["clip_low"].item() == 0
