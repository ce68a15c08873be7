"""The closing table of a pipeline: what each stage was to move, before and after, as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from keyekit.cli.pipeline.checks import CheckResult

__all__ = ["StageReport", "markdown", "table_of", "write_report"]

_VERDICTS = {True: "met", False: "MISSED", None: ""}
_HEAD = ("stage", "what", "before", "after", "expected", "verdict", "seconds", "note")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """A stage in the closing table.

    Args:
        name: The stage.
        state: How far it is.
        seconds: Of all its processes, in all runs.
        commands: What it runs.
        folder: Where it wrote.
        checks: What it moved; empty as long as it is not done.
    """

    name: str
    state: str
    seconds: float
    commands: tuple[str, ...]
    folder: str
    checks: tuple[CheckResult, ...] = ()

    @property
    def missed(self) -> int:
        """Checks whose bar was missed."""
        return sum(check.met is False for check in self.checks)


def rows_of(reports: Sequence[StageReport]) -> list[tuple[str, ...]]:
    """Cells of the table, in the order of its head; a stage without checks has a row too."""
    rows: list[tuple[str, ...]] = []
    for report in reports:
        name, seconds = report.name, f"{report.seconds:.0f}" if report.seconds else ""
        if not report.checks:
            rows.append(
                (name, "", "", "", "", "" if report.state in ("done", "as it was") else report.state, seconds, "")
            )
        for number, check in enumerate(report.checks):
            first = (name, seconds) if number == 0 else ("", "")
            verdict = _VERDICTS[check.met]
            rows.append(
                (first[0], check.what, check.before, check.after, check.expected, verdict, first[1], check.note)
            )
    return rows


def table_of(reports: Sequence[StageReport]) -> Table:
    """For a terminal."""
    table = Table(title="what each stage moved")
    for head in _HEAD:
        table.add_column(head, justify="right" if head in ("before", "after", "seconds") else "left")
    for row in rows_of(reports):
        verdict = row[5]
        style = "red" if verdict == _VERDICTS[False] else "green" if verdict == _VERDICTS[True] else None
        table.add_row(*row[:5], verdict if style is None else f"[{style}]{verdict}[/]", *row[6:])
    return table


def markdown(reports: Sequence[StageReport]) -> str:
    """For a page."""
    lines = [f"| {' | '.join(_HEAD)} |", "| --- | --- | ---: | ---: | --- | --- | ---: | --- |"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows_of(reports)]
    return "\n".join(lines) + "\n"


def write_report(folder: Path, reports: Sequence[StageReport], facts: Mapping[str, Any]) -> None:
    """Write ``pipeline.json`` and ``pipeline.md``.

    Args:
        folder: The pipeline's.
        reports: All stages.
        facts: What else the JSON says.
    """
    content = {**facts, "stages": {report.name: asdict(report) for report in reports}}
    texts = {
        "pipeline.json": json.dumps(content, indent=1) + "\n",
        "pipeline.md": f"# {facts.get('name', folder.name)}\n\n{markdown(reports)}",
    }
    for name, text in texts.items():
        partial = folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)
