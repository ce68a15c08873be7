import pytest
import torch

from keyekit.objectives.distillation.divergences import reverse_kl
from keyekit.objectives.distillation.support import compared_bins
from keyekit.objectives.distillation.topk import TopK

STUDENT = torch.tensor([[0.05, 0.15, 0.5, 0.3]], dtype=torch.float64).log()
TEACHER = torch.tensor([[0.6, 0.25, 0.05, 0.1]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("whose", "tail", "student", "teacher"),
    [
        ("teacher", "bin", [0.05, 0.15, 0.8], [0.6, 0.25, 0.15]),
        ("teacher", "renormalise", [0.25, 0.75], [0.6 / 0.85, 0.25 / 0.85]),
        ("teacher", "drop", [0.05, 0.15], [0.6, 0.25]),
        ("student", "bin", [0.5, 0.3, 0.2], [0.05, 0.1, 0.85]),
        ("student", "renormalise", [0.625, 0.375], [1 / 3, 2 / 3]),
    ],
)
def test_bins_of_the_two_best_words(whose, tail, student, teacher) -> None:
    found = compared_bins(STUDENT, TEACHER, 2, whose, tail)
    assert found[0].exp()[0].tolist() == pytest.approx(student)
    assert found[1].exp()[0].tolist() == pytest.approx(teacher)


def test_a_list_gives_the_same_bins_as_all_log_probabilities() -> None:
    best = TEACHER.topk(3)
    listed = TopK(indices=best.indices, log_probs=best.values)
    for tail in ("bin", "renormalise", "drop"):
        for ours, theirs in zip(
            compared_bins(STUDENT, listed, 2, "teacher", tail),
            compared_bins(STUDENT, TEACHER, 2, "teacher", tail),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)
    assert compared_bins(STUDENT, listed, None, "teacher", "bin")[0].shape == (1, 4)


def test_all_words_are_all_words() -> None:
    for topk in (None, 4, 9):
        assert compared_bins(STUDENT, TEACHER, topk, "teacher", "bin") == (STUDENT, TEACHER)
    best = TEACHER.topk(4)
    listed = TopK(indices=best.indices, log_probs=best.values)
    found = compared_bins(STUDENT, listed, None, "teacher", "bin")
    torch.testing.assert_close(reverse_kl(*found), reverse_kl(STUDENT, TEACHER))  # no bin for nothing


def test_without_the_tail_a_student_gets_away_by_saying_something_else() -> None:
    """Why ``bin`` is the default: all mass on a word that the teacher hardly knows, and the sum is negative."""
    away = torch.tensor([[1e-4, 1e-4, 1e-4, 1 - 3e-4]], dtype=torch.float64).log()
    value = {tail: reverse_kl(*compared_bins(away, TEACHER, 2, "teacher", tail)).item() for tail in ("bin", "drop")}
    assert value["drop"] < 0 < value["bin"]
