"""Progress lines where there is no terminal."""

import re
from types import SimpleNamespace

import pytest
import torch

from keyekit.callbacks.progress import TrainingProgress
from keyekit.testing.tiny import tiny_batch


def trainer(step: int, total: int = 4) -> SimpleNamespace:
    return SimpleNamespace(
        estimated_stepping_batches=total,
        global_step=step,
        callback_metrics={"train/loss": torch.tensor(1.25)},
        num_test_batches=[2, 1],
    )


def test_every_line_tells_loss_rate_and_time_left(capsys: pytest.CaptureFixture) -> None:
    progress = TrainingProgress(seconds_between_lines=0.0)
    progress.on_train_start(trainer(0), None)
    for step in range(1, 5):
        progress.on_train_batch_end(trainer(step), None, None, tiny_batch(), step - 1)
    progress.on_train_end(trainer(4), None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert re.fullmatch(r"train 1/4  loss 1\.2500  [\d,]+ tokens/s  0:00 passed, 0:00 left", lines[0])


def test_lines_are_rare(capsys: pytest.CaptureFixture) -> None:
    progress = TrainingProgress(seconds_between_lines=3600.0)
    progress.on_test_start(trainer(0), None)
    for index in range(3):
        progress.on_test_batch_end(trainer(0), None, None, tiny_batch(), index)
    assert capsys.readouterr().out == ""
    progress.on_test_end(trainer(0), None)
    assert capsys.readouterr().out.startswith("test 3/3")
