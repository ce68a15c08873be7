from __future__ import annotations

import pytest

from keyekit.batch import SampleInfo
from keyekit.metrics.answers import AnswerScores, Prediction, metric_name, score
from keyekit.testing.distributed import run_distributed


def predict(task: str, answer: str | None, text: str, **meta) -> Prediction:
    return Prediction(SampleInfo(id="a", task=task, start=0, stop=4, answer=answer, meta=meta), text)


@pytest.mark.parametrize(
    ("task", "answer", "text", "expected"),
    [
        ("count", "2", "2", 1.0),
        ("count", "2", " 2\n", 1.0),
        ("count", "2", "3", 0.0),
        ("count", "2", "2 2", 0.0),
        ("count", "2", "", 0.0),
        ("attribute", "red", "Red", 1.0),
        ("order", "the red circle", "the  red circle", 1.0),
        ("order", "the red circle", "the red", 0.0),
        ("temporal", "1.0 - 3.0", "2.0 - 4.0", 1 / 3),
        ("temporal", "1.0 - 3.0", "soon", 0.0),
        ("box", "<|box_start|>[[0, 0, 10, 10]]<|box_end|>", "[[5, 0, 15, 10]]", 1 / 3),
        ("box", "<|box_start|>[[0, 0, 10, 10]]<|box_end|>", "[[5, 0, 15", 0.0),
    ],
)
def test_score(task, answer, text, expected):
    assert score(predict(task, answer, text)) == pytest.approx(expected)


def test_a_sample_without_answer_cannot_be_scored():
    with pytest.raises(ValueError, match="sample a has no known answer"):
        score(predict("count", None, "2"))


def test_tasks_scored_by_overlap_have_another_name():
    assert [metric_name(task) for task in ("count", "box", "temporal", "unheard")] == [
        "accuracy",
        "mean_iou",
        "mean_iou",
        "accuracy",
    ]


def test_means_per_task():
    scores = AnswerScores()
    scores.update([predict("count", "2", "2", chance=0.25), predict("count", "2", "3", chance=0.75)])
    scores.update([predict("box", "[1, 1, 2, 2]", "[1, 1, 2, 2]"), predict("count", "1", "1")])
    assert scores.compute() == {
        "box": {"score": 1.0, "questions": 1.0},
        "count": {"score": pytest.approx(2 / 3), "questions": 3.0, "chance": 0.5},
    }


def test_tasks_without_questions_are_left_out():
    scores = AnswerScores(["count"])
    scores.update([])
    assert scores.compute() == {}


def test_reset_forgets_everything():
    scores = AnswerScores(["order"])
    scores.update([predict("count", "2", "2")])
    scores.reset()
    assert scores.tasks == ("order",)
    scores.update([predict("order", "a", "b")])
    assert scores.compute() == {"order": {"score": 0.0, "questions": 1.0}}


def score_on_a_rank(rank: int, world_size: int) -> tuple[dict, dict]:
    """Rank 0 meets counting alone, rank 1 other tasks before and after it in the alphabet."""
    scores = AnswerScores()
    answers = [("count", "2")] if rank == 0 else [("count", "3"), ("attribute", "2"), ("order", "2"), ("order", "x")]
    scores.update([predict(task, "2", text, chance=rank) for task, text in answers])
    together = scores.compute()
    scores.update([predict("count", "2", "2", chance=rank)])
    return together, scores.compute()


def test_ranks_that_meet_different_tasks_agree():
    results = run_distributed(score_on_a_rank, 2)
    together = {
        "attribute": {"score": 1.0, "questions": 1.0, "chance": 1.0},
        "count": {"score": 0.5, "questions": 2.0, "chance": 0.5},
        "order": {"score": 0.5, "questions": 2.0, "chance": 1.0},
    }
    later = together | {"count": {"score": 0.75, "questions": 4.0, "chance": 0.5}}
    assert list(results) == [(together, later)] * 2
