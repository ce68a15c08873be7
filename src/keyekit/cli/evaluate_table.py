"""The scores of an evaluation as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from keyekit.evaluation.evaluate import Evaluation
from keyekit.metrics.means import OVERALL, Estimate

__all__ = ["print_table"]

_MOST_ROWS = 40
"""Groups of a measure that the table shows; the file of results holds all."""


def print_table(evaluation: Evaluation, console: Console | None = None) -> None:
    """Print every measure with its groups: number of scores, mean, 95 % interval and what guessing gives.

    Groups that are one of another group's, such as a category within a length, stand in the file of results alone.

    Args:
        evaluation: What came out.
        console: Where to print; the terminal by default.
    """
    console = console or Console()
    settings = evaluation.settings
    table = Table(title=f"{settings['benchmark']}: {settings['source']}{', blind' if settings['blind'] else ''}")
    table.add_column("measure")
    table.add_column("of")
    for heading in ("count", "%", "95 % interval", "chance"):
        table.add_column(heading, justify="right")
    left_out = 0
    for measure, groups in evaluation.report.items():
        table.add_section()
        rows = [(name, row) for name, row in groups.items() if ", " not in name]
        left_out += len(groups) - len(rows[:_MOST_ROWS])
        for name, row in rows[:_MOST_ROWS]:
            table.add_row(measure if name == OVERALL else "", name, *_cells(row))
    console.print(table)
    for line in _remarks(evaluation, left_out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(row: Estimate) -> tuple[str, ...]:
    interval = "-" if row.low is None or row.high is None else f"{row.low:.1f} - {row.high:.1f}"
    return str(row.count), f"{row.value:.1f}", interval, "-" if row.chance is None else f"{row.chance:.1f}"


def _remarks(evaluation: Evaluation, left_out: int) -> list[str]:
    lines = []
    if evaluation.errors:
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(evaluation.errors.items()))
        count = f"{sum(evaluation.errors.values())} of {evaluation.questions} questions"
        lines.append(f"{count} could not be asked and count as wrong: {told}; the same command asks them again")
    if evaluation.problems:
        told = ", ".join(f"{count} {problem}" for problem, count in sorted(evaluation.problems.items()))
        lines.append(f"answers that could not be read: {told}")
    if left_out:
        lines.append(f"{left_out} finer groups are in the results alone")
    return [*lines, *evaluation.remarks]
