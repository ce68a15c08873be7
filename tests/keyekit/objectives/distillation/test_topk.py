import pytest
import torch

from keyekit.objectives.distillation.topk import TopK, log_complement, score_topk, take_topk


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_best_words_and_their_scores_are_those_of_whole_logits(teacher, chunk) -> None:
    scores = (teacher.hidden @ teacher.weight.T / 0.7).log_softmax(-1)
    kept = take_topk(teacher.hidden, teacher.weight, 4, temperature=0.7, chunk_size=chunk)
    torch.testing.assert_close(kept.log_probs, scores.topk(4).values)
    assert torch.equal(kept.indices, scores.topk(4).indices)
    assert not kept.log_probs.requires_grad
    assert kept.temperature == 0.7
    rest = 1 - scores.exp().topk(4).values.sum(-1)
    torch.testing.assert_close(kept.tail_log_probs().exp(), rest)
    chosen = torch.randint(0, 11, (7, 3))
    found = score_topk(teacher.hidden, teacher.weight, chosen, temperature=0.7, chunk_size=chunk)
    torch.testing.assert_close(found.log_probs, scores.gather(1, chosen))


def test_no_token_and_more_words_than_there_are(teacher) -> None:
    empty = take_topk(teacher.hidden[:0], teacher.weight, 4)
    assert empty.indices.shape == empty.log_probs.shape == (0, 4)
    empty.check(11)
    assert take_topk(teacher.hidden, teacher.weight, 99).indices.shape == (7, 11)


def test_a_tail_that_is_given_is_kept() -> None:
    tail = torch.tensor([-3.0, -4.0])
    kept = TopK(indices=torch.zeros(2, 1, dtype=torch.int64), log_probs=torch.zeros(2, 1), tail=tail)
    assert kept.tail_log_probs() is tail
    assert kept.rows(torch.tensor([1])).tail.tolist() == [-4.0]


@pytest.mark.parametrize("probabilities", [[1.0], [0.75, 0.25], [1.0, 1e-8]])
def test_the_rest_is_finite_where_nothing_is_left(probabilities) -> None:
    full = torch.tensor(probabilities).log().requires_grad_()
    rest = log_complement(full)
    assert rest.isfinite()
    assert rest < -10
    assert torch.autograd.grad(rest, full)[0].isfinite().all()


def test_what_no_teacher_of_this_vocabulary_can_have_said_is_refused() -> None:
    def kept(indices, log_probs) -> TopK:
        return TopK(indices=torch.tensor([indices]), log_probs=torch.tensor([log_probs]))

    kept([0, 10], [-1.0, -2.0]).check(11)
    with pytest.raises(ValueError, match="ids run from 0 to 11, the student knows 11 words: the teacher has another"):
        kept([0, 11], [-1.0, -2.0]).check(11)
    with pytest.raises(ValueError, match=r"add up to 1\.109: they are no log-probabilities"):
        kept([0, 1], [-0.3, -1.0]).check(11)
    with pytest.raises(ValueError, match="must both be"):
        TopK(indices=torch.zeros(2, 3), log_probs=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"tail \(3,\) must have one number for each of 2 tokens"):
        TopK(indices=torch.zeros(2, 1), log_probs=torch.zeros(2, 1), tail=torch.zeros(3))
    with pytest.raises(ValueError, match="temperature=0"):
        TopK(indices=torch.zeros(2, 1), log_probs=torch.zeros(2, 1), temperature=0)
    with pytest.raises(ValueError, match="topk=0"):
        take_topk(torch.zeros(1, 2), torch.zeros(3, 2), 0)
