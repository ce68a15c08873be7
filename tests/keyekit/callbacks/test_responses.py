from __future__ import annotations

import pytest

from keyekit.batch import SampleInfo
from keyekit.callbacks.responses import ResponseReport
from keyekit.metrics.answers import Prediction


class Words:
    """A tokenizer of words."""

    def encode(self, text: str, add_special_tokens: bool) -> list[str]:
        return text.split()


class Log:
    """Takes what is logged."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def log(self, name: str, value: float) -> None:
        self.values[name] = value


@pytest.fixture
def trainer():
    class Data:
        tokenizer = Words()
        test_conditions = ("open", "blank")

    class Trainer:
        datamodule = Data()
        world_size = 1

    return Trainer()


def said(task: str, *texts: str) -> dict[str, list[Prediction]]:
    info = SampleInfo(id="a", task=task, start=0, stop=4, answer="2")
    return {"predictions": [Prediction(info, text) for text in texts]}


def test_shapes_and_lengths_are_told_apart_by_task(trainer):
    report, log = ResponseReport(), Log()
    report.on_test_start(trainer, log)
    thought, cut = "<think>one one</think><answer>2</answer>", "<think>one one"
    report.on_test_batch_end(trainer, log, said("count", thought, cut), None, 0, 0)
    report.on_test_batch_end(trainer, log, said("read", "2"), None, 0, 0)
    report.on_test_batch_end(trainer, log, said("read", "hidden pictures are not looked at"), None, 0, 1)
    report.on_test_epoch_end(trainer, log)
    assert log.values == {
        "response/count/well_formed": 0.5,
        "response/count/thinks": 0.5,
        "response/count/tokens": 2.0,
        "response/read/well_formed": 1.0,
        "response/read/thinks": 0.0,
        "response/read/tokens": 1.0,
    }


def test_a_mode_can_be_asked_for_and_the_next_report_begins_anew(trainer):
    report, log = ResponseReport("think"), Log()
    for _ in range(2):
        report.on_validation_start(trainer, log)
        report.on_validation_batch_end(trainer, log, said("read", "2"), None, 0)
        report.on_validation_epoch_end(trainer, log)
    assert log.values["val/response/read/well_formed"] == 0.0
    assert log.values["val/response/read/tokens"] == 1.0
