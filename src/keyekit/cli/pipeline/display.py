"""How far a pipeline is: one live table on a terminal, a line at every event elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from keyekit.cli.pipeline.runner import Watcher
from keyekit.cli.pipeline.work import Work

__all__ = ["Lines", "LiveTable", "display"]

_COLOURS = {"running": "cyan", "done": "green", "failed": "red", "stopped": "yellow", "to submit": "yellow"}


@contextmanager
def display() -> Iterator[Watcher]:
    """Show the stages in the way that suits standard output, as long as the block lasts."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    table = LiveTable()
    with table.live:
        yield table


class LiveTable:
    """Every stage in a row: its state, step, time passed and what its own progress line says.

    Args:
        seconds: Redraw at most this often.
    """

    def __init__(self, seconds: float = 0.5) -> None:
        self.live = Live(console=Console(file=sys.stdout), auto_refresh=False)
        self._seconds = seconds
        self._drawn = 0.0

    def changed(self, work: Work) -> None:
        """Redraw soon."""
        self._drawn = 0.0

    def refresh(self, works: Sequence[Work]) -> None:
        """Redraw if it is time."""
        now = time.monotonic()
        if now - self._drawn >= self._seconds:
            self._drawn = now
            self.live.update(self.table(works), refresh=True)

    def table(self, works: Sequence[Work]) -> Table:
        """What is shown."""
        table = Table(box=None, pad_edge=False)
        for column in ("stage", "state", "step", "passed", "progress"):
            table.add_column(column, justify="right" if column == "passed" else "left", no_wrap=column != "progress")
        for work in works:
            step, said = work.progress() if work.state == "running" else ("", "")
            colour = _COLOURS.get(work.state, "dim")
            table.add_row(work.name, f"[{colour}]{work.state}[/]", step, _passed(work), escape(said))
        return table


class Lines:
    """A file or a pipe: a line when a stage begins or ends, and what the running ones say now and then.

    Args:
        seconds: Seconds between two looks at the running stages.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self._seconds = seconds
        self._told = time.monotonic()

    def changed(self, work: Work) -> None:
        """Tell what happened."""
        if work.state == "running":
            print(f"{work.name}: {work.left[0]}", flush=True)
        elif work.state != "waiting":
            print(f"{work.name}: {work.state} after {_passed(work)}", flush=True)

    def refresh(self, works: Sequence[Work]) -> None:
        """Tell how far the running stages are, if it is time."""
        now = time.monotonic()
        if now - self._told < self._seconds:
            return
        self._told = now
        for work in works:
            step, said = work.progress() if work.state == "running" else ("", "")
            if step:
                print(f"{work.name}: {step} · {said}", flush=True)


def _passed(work: Work) -> str:
    return str(timedelta(seconds=int(work.seconds))) if work.seconds else ""
