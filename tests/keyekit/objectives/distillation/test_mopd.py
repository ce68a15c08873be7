"""MOPD against the sheet's formula word by word (2.0 sheet 10.7), in all three modes."""

import math

import pytest
import torch

from keyekit.batch import Segments
from keyekit.objectives.distillation.base import Head, OnPolicy
from keyekit.objectives.distillation.matching import ReverseKL
from keyekit.objectives.distillation.mopd import MOPD
from keyekit.objectives.distillation.topk import TopK, score_topk, take_topk

SEGMENTS = Segments.of([3, 0, 4])
"""Answers: two tokens of the first sequence (positions 0 and 2), three of the third (3, 4, 6)."""
ANSWERS = ((0, 2), (3, 4, 6))
WORDS = {0: 3, 2: 0, 3: 10, 4: 10, 6: 7}


@pytest.fixture
def scores(student, teacher):
    """Log-probabilities of student and teacher as lists of floats."""
    return [(model.hidden @ model.weight.T).log_softmax(-1).detach().tolist() for model in (student, teacher)]


def best(row: list[float], topk: int) -> list[int]:
    return sorted(range(len(row)), key=lambda v: -row[v])[:topk]


def advantage(own: list[float], other: list[float], words: list[int], other_of=None) -> float:
    """The renormalised expectation over some words."""
    mass = sum(math.exp(own[v]) for v in words)
    return sum(math.exp(own[v]) / mass * ((other[v] if other_of is None else other_of(v)) - own[v]) for v in words)


def by_hand(student, advantages, normalisation="sequence"):
    log_probs = (student.hidden @ student.weight.T).log_softmax(-1)
    if normalisation == "token":
        return -sum(advantages[t] * log_probs[t, WORDS[t]] for answer in ANSWERS for t in answer) / 5
    means = [sum(advantages[t] * log_probs[t, WORDS[t]] for t in answer) / len(answer) for answer in ANSWERS]
    return -sum(means) / 2


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("normalisation", ["sequence", "token"])
def test_overlap_is_the_sheets_formula(chunk, normalisation, student, teacher, labels, scores, same_gradients) -> None:
    own, other = scores
    shared = {t: [v for v in best(own[t], 4) if v in best(other[t], 4)] for t in WORDS}
    assert min(map(len, shared.values())) < 4
    expected = by_hand(student, {t: advantage(own[t], other[t], shared[t]) for t in WORDS}, normalisation)
    objective = MOPD(topk=4, normalisation=normalisation, chunk_size=chunk)
    live = objective(student, teacher, labels, 5, OnPolicy(segments=SEGMENTS))
    same_gradients(live.loss, expected)
    for words in (4, 7):  # of a longer list the best four count
        listed = take_topk(teacher.hidden, teacher.weight, words)
        same_gradients(objective(student, listed, labels, 5, OnPolicy(segments=SEGMENTS)).loss, expected)
    assert live.meters["overlap"].item() == pytest.approx(sum(len(words) / 4 for words in shared.values()) / 5)


def test_without_a_shared_word_there_is_no_advantage(student, labels) -> None:
    logits = (student.hidden @ student.weight.T).detach() / 2  # the same favourite, less sure of it
    logits[[0, 4]] *= -1  # and here the opposite
    teacher = Head(hidden=logits, weight=torch.eye(11, dtype=torch.float64))
    output = MOPD(topk=1)(student, teacher, labels, 5, OnPolicy(segments=SEGMENTS))
    (gradient,) = torch.autograd.grad(output.loss, student.hidden)
    assert output.meters["empty"].item() == pytest.approx(2 / 5)
    assert gradient.any(dim=1).tolist() == [
        label >= 0 and row not in (0, 4) for row, label in enumerate(labels.tolist())
    ]
    assert gradient.isfinite().all()


def test_student_mode_takes_its_words_and_spreads_a_lists_tail(
    student, teacher, labels, scores, same_gradients
) -> None:
    own, other = scores
    exact = by_hand(student, {t: advantage(own[t], other[t], best(own[t], 4)) for t in WORDS})
    objective = MOPD(topk=4, mode="student", chunk_size=2)
    same_gradients(objective(student, teacher, labels, 5, OnPolicy(segments=SEGMENTS)).loss, exact)
    spread = {}
    for t in WORDS:
        listed = best(other[t], 3)
        tail = math.log((1 - sum(math.exp(other[t][v]) for v in listed)) / (11 - 3))

        def known(v, t=t, listed=listed, tail=tail):
            return other[t][v] if v in listed else tail

        spread[t] = advantage(own[t], other[t], best(own[t], 4), known)
    listed = take_topk(teacher.hidden, teacher.weight, 3)
    found = objective(student, listed, labels, 5, OnPolicy(segments=SEGMENTS))
    same_gradients(found.loss, by_hand(student, spread))


def test_teacher_on_student_takes_the_words_that_were_sent(student, teacher, labels, scores, same_gradients) -> None:
    own, other = scores
    sent = take_topk(student.hidden, student.weight, 4).indices
    answer = score_topk(teacher.hidden, teacher.weight, sent)
    expected = by_hand(student, {t: advantage(own[t], other[t], sent[t].tolist()) for t in WORDS})
    objective = MOPD(topk=4, mode="teacher_on_student", chunk_size=2)
    same_gradients(objective(student, answer, labels, 5, OnPolicy(segments=SEGMENTS)).loss, expected)
    same_gradients(objective(student, teacher, labels, 5, OnPolicy(segments=SEGMENTS)).loss, expected)
    stale = torch.tensor([[0, 5, 9]]).expand(7, 3)  # the student moved on since it asked: still those words
    moved = by_hand(student, {t: advantage(own[t], other[t], [0, 5, 9]) for t in WORDS})
    answer = score_topk(teacher.hidden, teacher.weight, stale)
    same_gradients(objective(student, answer, labels, 5, OnPolicy(segments=SEGMENTS)).loss, moved)


def test_categories_and_the_collapse_change_advantages(student, teacher, labels, scores, same_gradients) -> None:
    own, other = scores
    categories = torch.tensor([0, 0, -1, 1, 1, 1, 0])
    factors = {0: 0.25, 2: 1.0, 3: 2.0, 4: 2.0, 6: 0.25}
    after = {4, 6}  # the third sequence collapses at its answer's second token
    advantages = {
        t: factors[t] * advantage(own[t], other[t], best(own[t], 4)) - (0.7 if t in after else 0.0) for t in WORDS
    }
    objective = MOPD(4, "student", {"formatting": 0.25, "perception": 2.0}, repetition_penalty=0.7)
    given = OnPolicy(segments=SEGMENTS, categories=categories, collapse=torch.tensor([-1, 0, 1]))
    found = objective(student, teacher, labels, 5, given)
    same_gradients(found.loss, by_hand(student, advantages))
    assert found.meters["advantage"].item() == pytest.approx(sum(advantages.values()) / 5)


def by_words(student, own, other, sets, factors=None, penalties=None):
    """Minus ``A_t`` with the gradient through the student renormalised on its set alone, the mean over answers."""
    log_probs = (student.hidden @ student.weight.T).log_softmax(-1)
    total = 0.0
    for answer in ANSWERS:
        for t in answer:
            shares = log_probs[t, sets[t]].softmax(-1)
            gains = torch.tensor([other[t][v] - own[t][v] for v in sets[t]], dtype=torch.float64)  # perhaps of no word
            expectation = (factors or {}).get(t, 1.0) * (shares * gains).sum()
            total = total - (expectation - (penalties or {}).get(t, 0.0) * log_probs[t, WORDS[t]]) / len(answer)
    return total / 2


@pytest.mark.parametrize("mode", ["overlap", "student", "teacher_on_student"])
def test_credit_to_words_is_the_gradient_through_the_renormalised_student(
    mode, student, teacher, labels, scores, same_gradients
) -> None:
    own, other = scores
    sets = {t: [v for v in best(own[t], 4) if mode != "overlap" or v in best(other[t], 4)] for t in WORDS}
    expected = by_words(student, own, other, sets, {2: 0.5, 3: 2.0}, {4: 0.7, 6: 0.7})
    categories = torch.tensor([-1, -1, 0, 1, -1, -1, -1])
    given = OnPolicy(segments=SEGMENTS, categories=categories, collapse=torch.tensor([-1, -1, 1]))
    objective = MOPD(4, mode, {"formatting": 0.5, "perception": 2.0}, repetition_penalty=0.7, credit="words")
    same_gradients(objective(student, teacher, labels, 5, given).loss, expected)


def test_the_printed_formula_teaches_nothing_on_average_and_words_do(teacher) -> None:
    """Every word that the student might say, weighted with its probability: what an endless sample adds up to."""
    torch.manual_seed(0)
    logits = torch.randn(11, dtype=torch.float64)
    other = Head(hidden=teacher.hidden.detach()[:1], weight=teacher.weight.detach())
    probabilities, gradients = logits.softmax(-1), {}
    for credit in ("sampled", "words"):
        total = torch.zeros(11, dtype=torch.float64)
        for word, probability in enumerate(probabilities):
            own = Head(hidden=logits[None].clone().requires_grad_(), weight=torch.eye(11, dtype=torch.float64))
            loss = MOPD(11, credit=credit)(
                own, other, torch.tensor([word]), 1, OnPolicy(segments=Segments.of([1]))
            ).loss
            total += probability * torch.autograd.grad(loss, own.hidden)[0][0]
        gradients[credit] = total
    exact = Head(hidden=logits[None].clone().requires_grad_(), weight=torch.eye(11, dtype=torch.float64))
    divergence = ReverseKL()(exact, other, torch.tensor([0]), 1).loss
    assert gradients["sampled"].abs().max() < 1e-12
    torch.testing.assert_close(gradients["words"], torch.autograd.grad(divergence, exact.hidden)[0][0])


def test_a_teacher_like_the_student_teaches_nothing(student, labels) -> None:
    output = MOPD(topk=4)(student, student, labels, 5, OnPolicy(segments=SEGMENTS))
    assert output.loss.item() == pytest.approx(0, abs=1e-12)
    assert output.meters["overlap"].item() == 1


def test_over_all_words_the_advantage_is_minus_a_divergence(student, teacher, labels) -> None:
    output = MOPD(topk=11)(student, teacher, labels, 5, OnPolicy(segments=SEGMENTS))
    divergence = ReverseKL()(student, teacher, labels, 5).meters["divergence"]
    torch.testing.assert_close(output.meters["advantage"], -divergence)


@pytest.mark.parametrize("mode", ["overlap", "student", "teacher_on_student"])
def test_a_token_of_which_the_teacher_says_nothing_is_dropped_and_counted(mode, student, teacher, labels) -> None:
    listed = take_topk(teacher.hidden, teacher.weight, 4)
    listed.log_probs[3, 2] = math.nan
    hidden = teacher.hidden.detach().clone()
    hidden[3] = math.inf
    for source in (listed, Head(hidden=hidden, weight=teacher.weight)):
        output = MOPD(topk=4, mode=mode)(student, source, labels, 5, OnPolicy(segments=SEGMENTS))
        (gradient,) = torch.autograd.grad(output.loss, student.hidden)
        assert gradient.isfinite().all()
        assert not gradient[3].any()
        assert gradient[4].any()
        assert output.meters["dropped_tokens"].item() == 1


def test_packs_of_a_step_add_up_to_the_step(student, teacher, labels) -> None:
    def part(tokens: slice, lengths):
        own, other = (Head(hidden=model.hidden[tokens], weight=model.weight) for model in (student, teacher))
        return own, other, labels[tokens], int((labels[tokens] >= 0).sum()), OnPolicy(segments=Segments.of(lengths))

    packs = [part(slice(0, 3), [3, 0]), part(slice(3, 7), [4])]
    total = sum(MOPD().count(*pack[2:]) for pack in packs)
    assert total == 2
    whole = MOPD(topk=4)(student, teacher, labels, 5, OnPolicy(segments=SEGMENTS)).loss
    torch.testing.assert_close(sum(MOPD(topk=4)(*pack, total=total).loss for pack in packs), whole)


def test_no_target_is_a_zero_that_can_be_differentiated(student, teacher) -> None:
    output = MOPD()(student, teacher, torch.full((7,), -100), 0, OnPolicy(segments=SEGMENTS))
    output.loss.backward()
    assert output.loss.item() == 0
    assert not student.hidden.grad.any()


def test_what_does_not_fit_is_named(student, teacher, labels) -> None:
    with pytest.raises(ValueError, match=r"give on_policy=OnPolicy\(segments=\.\.\.\)"):
        MOPD()(student, teacher, labels, 5)
    warm = TopK(
        indices=torch.zeros(7, 1, dtype=torch.int64), log_probs=torch.zeros(7, 1, dtype=torch.float64), temperature=0.5
    )
    with pytest.raises(ValueError, match=r"taken at temperature 0\.5: MOPD compares at temperature 1"):
        MOPD()(student, warm, labels, 5, OnPolicy(segments=SEGMENTS))
    for arguments, message in (
        ({"topk": 0}, "topk=0"),
        ({"mode": "union"}, "mode='union': choose overlap, student or teacher_on_student"),
        ({"credit": "all"}, "credit='all': choose sampled or words"),
        ({"normalisation": "fixed"}, "normalisation='fixed': choose sequence or token"),
        ({"repetition_penalty": -1}, "repetition_penalty=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            MOPD(**arguments)
