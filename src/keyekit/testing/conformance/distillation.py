"""What every distillation objective has to fulfil."""

from __future__ import annotations

import math

import torch

from keyekit.batch import IGNORED_LABEL, Segments
from keyekit.objectives.distillation.base import DistillationOutput, Head, OnPolicy
from keyekit.testing.conformance.construction import make
from keyekit.testing.conformance.objective import check_has_no_weights

__all__ = ["CHECKS", "check_has_no_weights"]

CHECKS = (
    "check_has_no_weights",
    "check_agreement_moves_nothing",
    "check_padding_and_chunks_do_not_matter",
    "check_reports_meters",
    "check_no_gradient_into_the_teacher",
    "check_a_broken_teacher_poisons_nothing",
    "check_an_empty_pack_costs_nothing",
)
"""Functions of this module that make up the suite."""


def check_agreement_moves_nothing(cls: type) -> None:
    """A teacher that says what the student says gives no gradient; another one does."""
    student = _head(0)
    for teacher, learns in ((student, False), (_head(1), True)):
        (gradient,) = torch.autograd.grad(_call(make(cls), student, teacher).loss, student.hidden)
        moved = bool(gradient.abs().max() > 1e-9)
        assert moved is learns, (
            f"the gradient is {'not ' if moved else ''}zero with {'an equal' if not learns else 'a'} teacher"
        )


def check_padding_and_chunks_do_not_matter(cls: type) -> None:
    """Positions without a label may hold anything, and the result does not depend on the chunk size."""
    objective, student, teacher = make(cls), _head(0), _head(1)
    expected = _call(objective, student, teacher).loss
    with torch.no_grad():
        for model in (student, teacher):
            model.hidden[_labels() == IGNORED_LABEL] = 7.0
    for size in (1, 3):
        objective.chunk_size = size
        found = _call(objective, student, teacher).loss
        assert torch.allclose(found, expected), f"{found.item()} in chunks of {size}, {expected.item()} at once"


def check_reports_meters(cls: type) -> None:
    """Its meters and the count of dropped tokens are there, finite and without a gradient."""
    objective = make(cls)
    output = _call(objective, _head(0), _head(1))
    missing = {*objective.meter_names, "dropped_tokens"} - output.meters.keys()
    assert not missing, f"meters lacks {', '.join(sorted(missing))}"
    bad = [name for name, value in output.meters.items() if value.requires_grad or not value.isfinite()]
    assert not bad, f"not detached or not finite: {', '.join(bad)}"


def check_no_gradient_into_the_teacher(cls: type) -> None:
    """The teacher is frozen even if somebody forgot to switch its gradients off."""
    teacher = _head(1)
    _call(make(cls), _head(0), teacher).loss.backward()
    assert teacher.hidden.grad is None, "a gradient reaches the teacher's hidden states"
    assert teacher.weight.grad is None, "a gradient reaches the teacher's output layer"


def check_a_broken_teacher_poisons_nothing(cls: type) -> None:
    """A token for which the teacher gives no number is dropped and counted; the others learn."""
    student, teacher = _head(0), _head(1)
    with torch.no_grad():
        teacher.hidden[4] = math.nan
    output = _call(make(cls), student, teacher)
    (gradient,) = torch.autograd.grad(output.loss, student.hidden)
    assert output.loss.isfinite(), "the loss is no number"
    assert gradient.isfinite().all(), "the gradient is no number"
    assert not gradient[4].any(), "the token still learns"
    assert output.meters["dropped_tokens"].item() == 1, "the token is not counted"


def check_an_empty_pack_costs_nothing(cls: type) -> None:
    """A pack without a label has a loss of 0 that can be differentiated, so that no rank hangs."""
    labels = torch.full((6,), IGNORED_LABEL)
    loss = make(cls)(_head(0), _head(1), labels, 0, OnPolicy(segments=Segments.of([6]))).loss
    loss.backward()
    assert loss.item() == 0, f"a pack without a label costs {loss.item()}"


def _labels() -> torch.Tensor:
    return torch.tensor([3, IGNORED_LABEL, 0, 9, 4, IGNORED_LABEL])


def _head(seed: int) -> Head:
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, 5, generator=generator, dtype=torch.float64).requires_grad_() for n in (6, 10))
    return Head(hidden=hidden, weight=weight)


def _call(objective: torch.nn.Module, student: Head, teacher: Head) -> DistillationOutput:
    return objective(student, teacher, _labels(), 4, OnPolicy(segments=Segments.of([3, 3])))
