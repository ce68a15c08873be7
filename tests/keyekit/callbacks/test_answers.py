"""The answer report against hand-made predictions."""

from types import SimpleNamespace

import pytest
import torch

from keyekit.batch import SampleInfo
from keyekit.callbacks.answers import AnswerReport
from keyekit.metrics.answers import Prediction


def said(task: str, *pairs: tuple[str, str]) -> list[Prediction]:
    info = {"task": task, "start": 0, "stop": 1, "meta": {"chance": 0.25}}
    return [Prediction(SampleInfo(id="x", answer=answer, **info), text) for text, answer in pairs]


def report(conditions: dict[str, list[Prediction]], **options) -> tuple[AnswerReport, list[dict]]:
    logged: list[dict] = []
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(test_conditions=tuple(conditions), heldout_tasks=("count", "order", "box")),
        loggers=[SimpleNamespace(log_metrics=lambda values, step: logged.append(values))],
        global_step=7,
    )
    module = SimpleNamespace(device=torch.device("cpu"))
    callback = AnswerReport(**options)
    callback.on_test_start(trainer, module)
    for number, predictions in enumerate(conditions.values()):
        callback.on_test_batch_end(trainer, module, {"predictions": predictions}, None, 0, number)
    callback.on_test_end(trainer, module)
    return callback, logged


def test_metrics_of_every_condition(capsys: pytest.CaptureFixture) -> None:
    box = "<|box_start|>[[0, 0, 10, 10]]<|box_end|>"
    conditions = {
        "open": said("count", ("1", "1"), ("2", "2"), ("3", "4")) + said("order", ("a", "a")) + said("box", (box, box)),
        "blank": said("count", ("1", "1"), ("1", "2"), ("1", "4")) + said("order", ("b", "a")) + said("box", ("", box)),
        "swapped": said("count", ("2", "1")) + said("order", ("b", "a")) + said("box", ("", box)),
    }
    callback, logged = report(conditions, mean_over=["count", "order"])
    assert callback.metrics["count/accuracy"] == pytest.approx(2 / 3)
    assert callback.metrics["count/blind_accuracy"] == pytest.approx(1 / 3)
    assert callback.metrics["count/swapped_accuracy"] == 0
    assert callback.metrics["count/questions"] == 3
    assert callback.metrics["count/chance"] == 0.25
    assert callback.metrics["box/mean_iou"] == 1.0
    assert callback.metrics["box/blind_mean_iou"] == 0.0
    assert callback.metrics["mean/accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert logged[-1]["test/count/accuracy"] == pytest.approx(2 / 3)
    printed = capsys.readouterr().out
    assert "swapped" in printed
    assert "0.667" in printed


def test_tasks_that_generate_nothing_are_left_alone(capsys: pytest.CaptureFixture) -> None:
    callback = AnswerReport()
    callback.on_validation_start(None, None)
    callback.on_validation_batch_end(None, None, None, None, 0)
    callback.on_validation_end(None, None)
    assert capsys.readouterr().out == ""
