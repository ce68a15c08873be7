"""Divergences from hidden states against sums over words by hand, for every temperature, cut and chunk."""

import math

import pytest
import torch

from keyekit.objectives.distillation.base import Head
from keyekit.objectives.distillation.matching import ForwardKL, JensenShannon, ReverseKL
from keyekit.objectives.distillation.topk import TopK, take_topk
from keyekit.objectives.token_log_probs import token_log_probs
from keyekit.testing.memory import extra_memory


def kl(p, q):
    return sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))


def jensen_shannon(student, teacher, beta=0.3):
    mixture = [beta * t + (1 - beta) * s for s, t in zip(student, teacher, strict=True)]
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


DIVERGENCES = {
    "forward": (ForwardKL, lambda s, t: kl(t, s)),
    "reverse": (ReverseKL, kl),
    "jensen-shannon": (lambda **arguments: JensenShannon(0.3, **arguments), jensen_shannon),
}
EACH = pytest.mark.parametrize(("objective", "by_hand"), DIVERGENCES.values(), ids=DIVERGENCES)


def cut(student, teacher, topk, tail, whose="teacher"):
    """Bins of the best words, by hand."""
    judge = teacher if whose == "teacher" else student
    best = sorted(range(len(judge)), key=lambda v: -float(judge[v].detach()))[:topk]
    sides = [[side[v] for v in best] for side in (student, teacher)]
    if tail == "bin":
        return [[*side, 1 - sum(side)] for side in sides]
    return [[value / sum(side) for value in side] for side in sides] if tail == "renormalise" else sides


@EACH
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_equals_the_sum_over_all_words(
    objective, by_hand, chunk, student, teacher, labels, rows, same_gradients
) -> None:
    expected = sum(by_hand(*row) for row in rows(0.8, 1.5)) / 5
    found = objective(student_temperature=0.8, teacher_temperature=1.5, chunk_size=chunk)(student, teacher, labels, 5)
    same_gradients(found.loss, expected)
    torch.testing.assert_close(found.meters["divergence"], expected.detach())
    assert teacher.hidden.grad is None
    assert teacher.weight.grad is None


@EACH
@pytest.mark.parametrize("tail", ["bin", "renormalise", "drop"])
def test_best_words_equal_the_sum_over_bins(
    objective, by_hand, tail, student, teacher, labels, rows, same_gradients
) -> None:
    expected = sum(by_hand(*cut(*row, 3, tail)) for row in rows(1.0, 2.0)) / 5
    live = objective(teacher_temperature=2.0, topk=3, tail=tail, chunk_size=2)(student, teacher, labels, 5)
    same_gradients(live.loss, expected)
    listed = take_topk(teacher.hidden, teacher.weight, 5, temperature=2.0)
    stored = objective(teacher_temperature=2.0, topk=3, tail=tail, chunk_size=2)(student, listed, labels, 5)
    same_gradients(stored.loss, expected)
    assert stored.meters["agreement"] == live.meters["agreement"]


@EACH
def test_the_students_best_words(objective, by_hand, student, teacher, labels, rows, same_gradients) -> None:
    expected = sum(by_hand(*cut(*row, 3, "bin", "student")) for row in rows()) / 5
    same_gradients(objective(topk=3, whose="student")(student, teacher, labels, 5).loss, expected)


@EACH
def test_a_teacher_like_the_student_costs_nothing_and_moves_nothing(objective, by_hand, student, labels) -> None:
    output = objective()(student, student, labels, 5)
    gradients = torch.autograd.grad(output.loss, (student.hidden, student.weight))
    assert output.loss.item() == pytest.approx(0, abs=1e-12)
    assert all(gradient.abs().max() < 1e-12 for gradient in gradients)
    assert output.meters["agreement"].item() == 1


@EACH
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_token_of_which_the_teacher_says_nothing_is_dropped_and_counted(
    objective, by_hand, value, student, teacher, labels, rows, same_gradients
) -> None:
    expected = sum(by_hand(*row) for row in rows()[:4]) / 5
    hidden = teacher.hidden.detach().clone()
    hidden[6] = value
    broken = objective()(student, Head(hidden=hidden, weight=teacher.weight), labels, 5)
    same_gradients(broken.loss, expected)
    assert broken.meters["dropped_tokens"].item() == 1
    listed = take_topk(teacher.hidden, teacher.weight, 4)
    listed.log_probs[2, 1] = value
    stored = objective()(student, listed, labels, 5)
    assert stored.loss.isfinite()
    assert all(part.isfinite().all() for part in torch.autograd.grad(stored.loss, (student.hidden, student.weight)))
    assert stored.meters["dropped_tokens"].item() == 1


def test_meters_equal_loops(student, teacher, labels, rows) -> None:
    found = ReverseKL()(student, teacher, labels, 5).meters
    pairs = [[[value.item() for value in side] for side in row] for row in rows()]
    assert found["agreement"].item() == pytest.approx(sum(s.index(max(s)) == t.index(max(t)) for s, t in pairs) / 5)
    assert found["student_entropy"].item() == pytest.approx(sum(-sum(p * math.log(p) for p in s) for s, _ in pairs) / 5)


def test_no_target_is_a_zero_that_can_be_differentiated(student, teacher) -> None:
    output = ForwardKL()(student, teacher, torch.full((7,), -100), 0)
    output.loss.backward()
    assert output.loss.item() == 0
    assert not student.hidden.grad.any()


def test_packs_of_a_step_add_up_to_the_step(student, teacher, labels) -> None:
    def part(rows: slice, num_targets: int):
        own = Head(hidden=student.hidden[rows], weight=student.weight)
        other = Head(hidden=teacher.hidden[rows], weight=teacher.weight)
        return ReverseKL()(own, other, labels[rows], num_targets, total=5).loss

    torch.testing.assert_close(
        part(slice(0, 4), 3) + part(slice(4, 7), 2), ReverseKL()(student, teacher, labels, 5).loss
    )


def test_neither_models_logits_are_held_whole() -> None:
    rows, vocab = 2048, 32_000
    student, teacher = (Head(hidden=torch.randn(rows, 32), weight=torch.randn(vocab, 32) * 0.3) for _ in range(2))
    student.hidden.requires_grad_()
    logits = 4 * rows * vocab
    labels = torch.zeros(rows, dtype=torch.int64)
    peak = extra_memory(lambda: ReverseKL(topk=64, chunk_size=8)(student, teacher, labels, rows).loss.backward())
    assert peak < logits / 8


def test_under_autocast_products_are_narrow_and_the_loss_is_not(student, teacher, labels) -> None:
    own, other = (
        Head(hidden=model.hidden.detach().float().requires_grad_(), weight=model.weight.detach().float())
        for model in (student, teacher)
    )
    exact = ForwardKL()(own, other, labels, 5).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = ForwardKL()(own, other, labels, 5).loss
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough != exact
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


def test_the_gradient_on_own_samples_is_that_of_the_policy_gradient(student, teacher) -> None:
    """Reverse divergence over all words is the average, over words drawn from the student, of log-ratio times score."""
    labels = torch.zeros(7, dtype=torch.int64)
    exact = torch.autograd.grad(ReverseKL()(student, teacher, labels, 7).loss, student.hidden)[0]
    own = (student.hidden @ student.weight.T).log_softmax(-1).detach()
    ratio = own - (teacher.hidden @ teacher.weight.T).log_softmax(-1).detach()
    average = torch.zeros_like(exact)
    for word in range(11):
        scored = token_log_probs(student.hidden, student.weight, torch.full((7,), word), 7).values
        weighted = (own[:, word].exp() * ratio[:, word] * scored).sum() / 7
        average += torch.autograd.grad(weighted, student.hidden)[0]
    torch.testing.assert_close(average, exact)


def test_what_does_not_fit_is_named(student, teacher, labels) -> None:
    listed = take_topk(teacher.hidden, teacher.weight, 4, temperature=2.0)
    with pytest.raises(ValueError, match=r"taken at temperature 2\.0, teacher_temperature=1\.0"):
        ForwardKL()(student, listed, labels, 5)
    with pytest.raises(ValueError, match="whose='student' needs the teacher's hidden states"):
        ForwardKL(teacher_temperature=2.0, whose="student")(student, listed, labels, 5)
    for arguments, message in (
        ({"student_temperature": 0}, "student_temperature=0"),
        ({"topk": 0}, "topk=0"),
        ({"whose": "both"}, "whose='both': choose teacher or student"),
        ({"tail": "keep"}, "tail='keep': choose bin, renormalise or drop"),
    ):
        with pytest.raises(ValueError, match=message):
            ReverseKL(**arguments)
    with pytest.raises(ValueError, match="beta=1 must lie between 0 and 1"):
        JensenShannon(beta=1)


def test_a_stored_tail_of_nothing_is_sound(student, labels) -> None:
    """A teacher that is certain: its list has all the mass, and its tail is minus infinity."""
    listed = TopK(indices=torch.zeros(7, 1, dtype=torch.int64), log_probs=torch.zeros(7, 1, dtype=torch.float64))
    output = ForwardKL()(student, listed, labels, 5)
    expected = -(student.hidden @ student.weight.T).log_softmax(-1)[labels != -100, 0].mean()
    torch.testing.assert_close(output.loss, expected)
