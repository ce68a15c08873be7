import math

import pytest
import torch

from keyekit.objectives.distillation.divergences import forward_kl, generalized_jensen_shannon, reverse_kl

STUDENT, TEACHER = (0.7, 0.2, 0.1), (0.25, 0.5, 0.25)


def kl(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.fixture
def log_probs():
    return tuple(torch.tensor(p, dtype=torch.float64).log() for p in (STUDENT, TEACHER))


def test_each_equals_its_sum(log_probs) -> None:
    assert forward_kl(*log_probs).item() == pytest.approx(kl(TEACHER, STUDENT))
    assert reverse_kl(*log_probs).item() == pytest.approx(kl(STUDENT, TEACHER))
    for beta in (0.1, 0.5, 0.8):
        mixture = [beta * t + (1 - beta) * s for s, t in zip(STUDENT, TEACHER, strict=True)]
        expected = beta * kl(TEACHER, mixture) + (1 - beta) * kl(STUDENT, mixture)
        assert generalized_jensen_shannon(*log_probs, beta).item() == pytest.approx(expected)


def test_jensen_shannon_is_symmetric_bounded_and_meets_both_ends(log_probs) -> None:
    student, teacher = log_probs
    assert generalized_jensen_shannon(student, teacher).item() == pytest.approx(
        generalized_jensen_shannon(teacher, student).item()
    )
    apart = torch.tensor([0.0, -1e4], dtype=torch.float64)
    assert generalized_jensen_shannon(apart, apart.flip(0)).item() == pytest.approx(math.log(2))
    near = 1e-6
    assert generalized_jensen_shannon(student, teacher, near).item() / near == pytest.approx(
        kl(TEACHER, STUDENT), rel=1e-4
    )
    assert generalized_jensen_shannon(student, teacher, 1 - near).item() / near == pytest.approx(
        kl(STUDENT, TEACHER), rel=1e-4
    )


def test_equal_distributions_cost_nothing(log_probs) -> None:
    student, _ = log_probs
    for divergence in (forward_kl, reverse_kl, generalized_jensen_shannon):
        assert divergence(student, student).item() == pytest.approx(0, abs=1e-15)
