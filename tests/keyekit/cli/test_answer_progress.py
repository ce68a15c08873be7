from __future__ import annotations

import sys

import pytest

from keyekit.cli import answer_progress
from keyekit.cli.answer_progress import AnswerProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(answer_progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_counts_what_this_call_did(clock, capsys):
    progress = AnswerProgress()
    clock[0] = 4.0
    progress(7, 10)  # six were there before
    clock[0] = 8.0
    progress(8, 10)  # told a moment ago
    clock[0] = 16.0
    progress(9, 10)
    progress(10, 10)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        "7/10 answers, 4 s passed, 12 s left",
        "9/10 answers, 16 s passed, 5 s left",
        "10/10 answers, 16 s passed, 0 s left",
    ]


def test_a_terminal_sees_one_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = AnswerProgress()
    progress(1, 2)
    progress(2, 2)
    told = capsys.readouterr().err
    assert told.count("\r") == 2
    assert told.count("\n") == 1
