from __future__ import annotations

import io
import re
import sys

import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar

from keyekit.callbacks.progress import TrainingProgress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """Called inside a test, because pytest replaces the stream between set-up and call."""

    def replace() -> Terminal:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setenv("COLUMNS", "120")
        return terminal

    return replace


def lines_of(capsys) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_pipe_gets_the_first_and_the_last_line(make_trainer, model, data, capsys):
    make_trainer(TrainingProgress()).fit(model, datamodule=data)
    lines = [line for line in lines_of(capsys) if line.startswith("train")]
    assert len(lines) == 2
    assert lines[0].startswith("train 0/4")
    assert re.fullmatch(r"train 4/4 · loss \d+\.\d{4} · [\d,]+ tokens/s · 0:\d\d · 0:00 left", lines[1])


def test_a_pipe_gets_a_line_now_and_then(make_trainer, model, data, capsys):
    make_trainer(TrainingProgress(seconds_between_lines=0.0)).fit(model, datamodule=data)
    lines = lines_of(capsys)
    assert [line.split()[1] for line in lines if line.startswith("train")] == ["0/4", "1/4", "2/4", "3/4", "4/4", "4/4"]
    assert any(line.startswith("validate 1/1") for line in lines)
    assert any(line.startswith("sanity check 1/1") for line in lines)


def test_a_test_is_one_line_over_all_loaders(make_trainer, model, data, capsys):
    make_trainer(TrainingProgress(seconds_between_lines=0.0)).test(model, datamodule=data, verbose=False)
    shown = [line.split(" · ")[0] for line in lines_of(capsys) if line.startswith("test")]
    assert shown == [
        "test 0/6",
        *["test open 1/6", "test open 2/6"],
        *["test blank 3/6", "test blank 4/6"],
        *["test swapped 5/6", "test swapped 6/6"],
        "test swapped 6/6",
    ]


def test_validation_alone(make_trainer, model, data, capsys):
    make_trainer(TrainingProgress()).validate(model, datamodule=data, verbose=False)
    assert [line.split(" · ")[0] for line in lines_of(capsys) if line] == ["validate 0/1", "validate 1/1"]


def test_a_terminal_gets_a_bar(make_trainer, model, data, open_terminal):
    terminal = open_terminal()
    make_trainer(TrainingProgress(refresh_seconds=0.0)).fit(model, datamodule=data)
    assert "4/4" in terminal.getvalue()
    assert "tokens/s" in terminal.getvalue()
    assert "validate" in terminal.getvalue()
    assert sys.stdout is terminal, "rich must give the stream back"


def test_the_loss_is_read_once_per_refresh(make_trainer, model, data, monkeypatch, capsys):
    read = []
    original = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: read.append(tensor) or original(tensor))
    trainer = make_trainer(TrainingProgress())
    trainer.fit(model, datamodule=data)
    with_progress = len(read)
    read.clear()
    make_trainer().fit(model, datamodule=data)
    assert with_progress - len(read) <= 2


def test_a_failure_gives_the_terminal_back(make_trainer, failing_model, data, open_terminal):
    terminal = open_terminal()
    with pytest.raises(RuntimeError, match="the model broke"):
        make_trainer(TrainingProgress()).fit(failing_model, datamodule=data)
    assert sys.stdout is terminal


def test_a_resumed_fit_counts_on(make_trainer, model, data, capsys, tmp_path):
    trainer = make_trainer(max_steps=2)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "at2.ckpt")
    make_trainer(TrainingProgress()).fit(model, datamodule=data, ckpt_path=tmp_path / "at2.ckpt")
    assert [line.split(" · ")[0] for line in lines_of(capsys) if line.startswith("train")] == ["train 2/4", "train 4/4"]


def test_lightnings_bar_is_turned_off(model, data, tmp_path, capsys):
    import lightning

    bar = RichProgressBar()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[bar, TrainingProgress()],
    )
    trainer.fit(model, datamodule=data)
    assert not bar.is_enabled
    assert any(line.startswith("train 2/2") for line in lines_of(capsys))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3661, "1:01:01"), (-1, "0:00")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
