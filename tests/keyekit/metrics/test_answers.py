"""Scores of answers."""

import pytest
import torch

from keyekit.batch import SampleInfo
from keyekit.metrics.answers import AnswerScores, Prediction, box_iou, metric_name, score, temporal_iou
from keyekit.testing.distributed import run_distributed


def prediction(text: str, answer: str | None, task: str = "count", chance: float | None = None) -> Prediction:
    meta = {} if chance is None else {"chance": chance}
    return Prediction(SampleInfo(id="s", task=task, start=0, stop=1, answer=answer, meta=meta), text)


@pytest.mark.parametrize(
    ("task", "said", "answer", "expected"),
    [
        ("count", " 3 ", "3", 1.0),
        ("order", "Red  Circle", "red circle", 1.0),
        ("count", "13", "3", 0.0),
        ("temporal", "1.0 - 2.0", "1.0 - 3.0", 0.5),
        ("temporal", "from 1.0", "1.0 - 3.0", 0.0),
        ("temporal", "3.0 - 1.0", "1.0 - 3.0", 0.0),
        ("box", "<|box_start|>[[0, 0, 10, 10]]<|box_end|>", "<|box_start|>[[0, 0, 10, 20]]<|box_end|>", 0.5),
        ("box", "no box", "<|box_start|>[[0, 0, 10, 20]]<|box_end|>", 0.0),
    ],
)
def test_score(task: str, said: str, answer: str, expected: float) -> None:
    assert score(prediction(said, answer, task)) == pytest.approx(expected)


def test_overlaps_against_torchvision() -> None:
    from torchvision.ops import box_iou as reference

    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 8], [5, 5, 7, 7], [0, 0, 1, 9]])
    for i in range(4):
        for j in range(4):
            assert box_iou(boxes[i].tolist(), boxes[j].tolist()) == pytest.approx(reference(boxes, boxes)[i, j].item())
    assert temporal_iou([0, 1], [2, 3]) == 0.0
    assert temporal_iou(None, [2, 3]) == 0.0
    assert box_iou([3, 3, 3, 5], [0, 0, 9, 9]) == 0.0


def test_an_unknown_answer_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="no known answer"):
        score(prediction("x", None))


def test_names() -> None:
    assert [metric_name(task) for task in ("count", "box", "temporal")] == ["accuracy", "mean_iou", "mean_iou"]


def test_scores_per_task_with_chance() -> None:
    scores = AnswerScores(["order", "count", "box"])
    scores.update([prediction("1", "1", chance=0.25), prediction("2", "1", chance=0.25), prediction("a", "a", "order")])
    assert scores.compute() == {
        "count": {"score": 0.5, "questions": 2, "chance": 0.25},
        "order": {"score": 1.0, "questions": 1},
    }


def _on_one_rank(rank: int, world_size: int) -> None:
    scores = AnswerScores(["count"])
    scores.update([prediction("1", "1")] * (1 + 2 * rank) + [prediction("2", "1")] * (1 - rank))
    assert scores.compute() == {"count": {"score": 4 / 5, "questions": 5}}


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_add_up() -> None:
    run_distributed(_on_one_rank, 2)
