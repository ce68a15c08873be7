"""Runs the stages of a pipeline side by side as far as they do not need each other."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from keyekit.cli.pipeline.work import Work

__all__ = ["Watcher", "run_stages"]

_FINISHED = ("done", "as it was")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Watcher(Protocol):
    """Who shows how far the stages are."""

    def changed(self, work: Work) -> None:
        """A stage began or ended."""
        ...

    def refresh(self, works: Sequence[Work]) -> None:
        """Called some times a second."""
        ...


def run_stages(
    works: Mapping[str, Work],
    jobs: int,
    watcher: Watcher,
    inherited: Sequence[int] = (),
    pause: float = 0.1,
) -> int | None:
    """Run stages until all are done or nothing more can be.

    After a failure no further stage begins; those that run are finished. A signal goes to every running process, once.

    Args:
        works: The stages in order, with those that they need among them or done.
        jobs: Most processes at a time.
        watcher: Is told what happens.
        inherited: Files that processes keep open.
        pause: Seconds between two looks.

    Returns:
        The signal that ended it, or ``None``.
    """
    with _signals() as received:
        told = 0
        while True:
            for work in works.values():
                if work.poll():
                    watcher.changed(work)
            if len(received) > told:
                told = len(received)
                for work in works.values():
                    work.tell(signal.SIGTERM)
            running = [work for work in works.values() if work.state == "running"]
            stopping = received or any(work.state in ("failed", "stopped") for work in works.values())
            if not stopping:
                for work in _ready(works)[: max(jobs - len(running), 0)]:
                    work.start(inherited)
                    running.append(work)
                    watcher.changed(work)
            watcher.refresh(list(works.values()))
            if not running:
                break
            time.sleep(pause)
        for work in works.values():
            if work.state == "waiting":
                work.state = "blocked"
        return received[0] if received else None


def _ready(works: Mapping[str, Work]) -> list[Work]:
    """Stages that may begin, those that were begun first."""
    ready = [
        work
        for work in works.values()
        if work.state == "waiting" and all(works[need].state in _FINISHED for need in work.needs if need in works)
    ]
    return sorted(ready, key=lambda work: not work.record.done)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals that arrive, instead of what they would do."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)

    former = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
