import pytest
import torch

from keyekit.objectives.distillation.base import Head, target_rows
from keyekit.objectives.distillation.matching import ReverseKL
from keyekit.objectives.distillation.topk import take_topk


def test_target_rows() -> None:
    assert target_rows(torch.tensor([5, -100, -100, 0]), 2).tolist() == [0, 3]


def test_a_teacher_with_other_words_or_tokens_is_refused(student, teacher, labels) -> None:
    with pytest.raises(ValueError, match="the student knows 11 words, the teacher 10: their words must be the same"):
        ReverseKL()(student, Head(hidden=teacher.hidden, weight=teacher.weight[:10]), labels, 5)
    with pytest.raises(ValueError, match="7 tokens of the student, 6 of the teacher and 7 labels"):
        ReverseKL()(student, Head(hidden=teacher.hidden[:6], weight=teacher.weight), labels, 5)
    with pytest.raises(ValueError, match="7 tokens of the student, 6 of the teacher"):
        ReverseKL()(student, take_topk(teacher.hidden[:6], teacher.weight, 2), labels, 5)
