from __future__ import annotations

import json

from rich.console import Console

from keyekit.cli.pipeline.checks import CheckResult
from keyekit.cli.pipeline.report import StageReport, markdown, table_of, write_report


def reports() -> list[StageReport]:
    def check(what: str, met: bool | None) -> CheckResult:
        return CheckResult(what=what, before="0.1", after="0.9", expected="after >= 0.5", met=met, note="a | b")

    return [
        StageReport(
            name="a",
            state="done",
            seconds=12.4,
            commands=("keyekit fit",),
            folder="runs/a",
            checks=(check("m", True), check("n", None)),
        ),
        StageReport(name="b", state="as it was", seconds=3, commands=(), folder="runs/b", checks=(check("m", False),)),
        StageReport(name="c", state="blocked", seconds=0, commands=(), folder="runs/c"),
    ]


def test_the_table_says_what_moved_and_what_missed():
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table_of(reports()))
    text = captured.get()
    assert "met" in text
    assert "MISSED" in text
    assert "blocked" in text


def test_markdown_has_a_row_for_every_check():
    lines = markdown(reports()).splitlines()
    assert lines[2] == "| a | m | 0.1 | 0.9 | after >= 0.5 | met | 12 | a \\| b |"
    assert lines[3].startswith("|  | n | 0.1")
    assert lines[4].startswith("| b | m | 0.1 | 0.9 | after >= 0.5 | MISSED | 3 |")
    assert lines[5] == "| c |  |  |  |  | blocked |  |  |"


def test_the_files(tmp_path):
    write_report(tmp_path, reports(), {"name": "demo", "commit": "abc"})
    content = json.loads((tmp_path / "pipeline.json").read_text())
    assert content["commit"] == "abc"
    assert content["stages"]["b"]["checks"][0]["met"] is False
    assert (tmp_path / "pipeline.md").read_text().startswith("# demo\n")
    assert len(list(tmp_path.iterdir())) == 2
    assert [report.missed for report in reports()] == [0, 1, 0]
