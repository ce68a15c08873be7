from __future__ import annotations

import sys

from rich.console import Console

from keyekit.cli.pipeline.commands import Step
from keyekit.cli.pipeline.display import Lines, LiveTable, display
from keyekit.cli.pipeline.record import Record
from keyekit.cli.pipeline.work import Work


def works(tmp_path) -> list[Work]:
    made = []
    for name, state in (("a", "done"), ("b", "running"), ("c", "waiting")):
        log = tmp_path / f"{name}.log"
        log.write_text("$ keyekit fit x.yaml\ntrain 20/300 · loss 1.2 · 0:05 · 1:10 left\n")
        step = Step(name="fit", words=("fit", "x.yaml"))
        record = Record(recipe="r", seconds=75.0 if name != "c" else 0.0)
        made.append(
            Work(name=name, needs=(), folder=tmp_path / name, log=log, steps=[step], record=record, state=state)  # pyright: ignore
        )
    return made


def test_a_row_for_every_stage_with_its_step_and_the_time_left(tmp_path):
    console = Console(width=100)
    with console.capture() as captured:
        console.print(LiveTable().table(works(tmp_path)))
    rows = captured.get().splitlines()
    assert rows[1].split() == ["a", "done", "0:01:15"]
    assert "train 20/300" in rows[2]
    assert "1:10 left" in rows[2]
    assert rows[3].split() == ["c", "waiting"]


def test_lines_where_there_is_no_terminal(tmp_path, capsys):
    lines = Lines(seconds=0)
    made = works(tmp_path)
    for work in made:
        lines.changed(work)
    lines.refresh(made)
    assert capsys.readouterr().out.splitlines() == [
        "a: done after 0:01:15",
        "b: keyekit fit x.yaml",
        "b: train 20/300 · loss 1.2 · 0:05 · 1:10 left",
    ]


def test_the_output_decides(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    with display() as watcher:
        assert isinstance(watcher, Lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with display() as watcher:
        assert isinstance(watcher, LiveTable)
