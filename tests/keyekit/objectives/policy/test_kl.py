"""What the estimates estimate: their value and their gradient, summed over all words with the policy's probabilities."""

import pytest
import torch

from keyekit.objectives.policy.kl import full_kl, kl_estimate


@pytest.fixture
def models():
    torch.manual_seed(0)
    policy = torch.randn(6, dtype=torch.float64, requires_grad=True)
    return policy, (policy.detach() + 0.05 * torch.randn(6, dtype=torch.float64))


def test_full_is_the_sum_over_words(models) -> None:
    policy, reference = models
    p, q = policy.softmax(0), reference.softmax(0)
    expected = sum(p[i] * torch.log(p[i] / q[i]) for i in range(6))
    found = full_kl(policy[None], reference[None])[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, policy)[0], torch.autograd.grad(expected, policy)[0])


def test_values_are_right_on_average(models) -> None:
    policy, reference = models
    p, exact = policy.softmax(0), full_kl(policy[None], reference[None])[0].item()
    means = {
        form: (p * kl_estimate(policy.log_softmax(0), reference.log_softmax(0), form)).sum().item()
        for form in ("k1", "k2", "k3")
    }
    assert means["k1"] == pytest.approx(exact)
    assert means["k3"] == pytest.approx(exact)
    assert means["k2"] == pytest.approx(exact, rel=0.1)
    assert means["k2"] != pytest.approx(exact)


def test_gradients_on_average_are_none_right_and_nearly_right(models) -> None:
    """A loss sees the samples as given: the probabilities of the average have no gradient."""
    policy, reference = models
    weights = policy.softmax(0).detach()
    (exact,) = torch.autograd.grad(full_kl(policy[None], reference[None])[0], policy)

    def gradient(form):
        estimate = (weights * kl_estimate(policy.log_softmax(0), reference.log_softmax(0), form)).sum()
        return torch.autograd.grad(estimate, policy)[0]

    torch.testing.assert_close(gradient("k1"), torch.zeros_like(exact))
    torch.testing.assert_close(gradient("k2"), exact)
    error = (gradient("k3") - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.1


def test_far_apart_is_finite() -> None:
    far = torch.tensor(-1e4, requires_grad=True)
    for form in ("k1", "k2", "k3"):
        value = kl_estimate(far, torch.tensor(0.0), form)
        assert value.isfinite()
        assert torch.autograd.grad(value, far)[0].isfinite()


def test_an_unknown_form_is_named() -> None:
    with pytest.raises(ValueError, match="form='full' is no estimate"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "full")
