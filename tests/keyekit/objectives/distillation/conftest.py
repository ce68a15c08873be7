"""A student and a wider teacher in float64 over seven tokens, five of which are learnt, and eleven words."""

import pytest
import torch

from keyekit.objectives.distillation.base import Head

LABELS = (3, -100, 0, 10, 10, -100, 7)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor(LABELS)


@pytest.fixture
def student() -> Head:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 4, generator=generator, dtype=torch.float64).requires_grad_() for n in (7, 11))
    return Head(hidden=hidden, weight=weight)


@pytest.fixture
def teacher() -> Head:
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_() for n in (7, 11))
    return Head(hidden=hidden, weight=weight)


@pytest.fixture
def rows(student, teacher):
    """Probabilities of student and teacher at the tokens that are learnt, at given temperatures, as lists of scalars."""

    def make(student_temperature: float = 1.0, teacher_temperature: float = 1.0):
        own = student.hidden @ student.weight.T / student_temperature
        other = (teacher.hidden @ teacher.weight.T / teacher_temperature).detach()
        found = []
        for i, label in enumerate(LABELS):
            if label >= 0:
                exponentials = [[torch.exp(score) for score in scores[i]] for scores in (own, other)]
                found.append([[value / sum(values) for value in values] for values in exponentials])
        return found

    return make


@pytest.fixture
def same_gradients(student):
    """Compares two losses and their gradients by the student's hidden states and output layer."""

    def check(loss, expected) -> None:
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
        leaves = (student.hidden, student.weight)
        for ours, theirs in zip(
            torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    return check
