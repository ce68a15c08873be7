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
    progress(7, 13)  # six were there before; the first of a batch of two
    progress(8, 13)
    clock[0] = 8.0
    progress(9, 13)
    clock[0] = 9.0
    progress(10, 13)  # told a moment ago
    clock[0] = 20.0
    progress(12, 13)
    progress(13, 13)
    assert [line.strip() for line in capsys.readouterr().err.splitlines()] == [
        "9/13 answers, 8 s passed, 11 s left",
        "12/13 answers, 20 s passed, 3 s left",
        "13/13 answers, 20 s passed, 0 s left",
    ]


def test_a_terminal_sees_one_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = AnswerProgress()
    for count, second in enumerate((0.0, 1.0, 1.2, 2.0), 1):
        clock[0] = second
        progress(count, 4)
    told = capsys.readouterr().err
    assert told.count("\r") == 2
    assert told.count("\n") == 1
