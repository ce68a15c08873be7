"""One stage while a pipeline runs: its processes, started one after the other, watched and told to stop."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from keyekit.cli.pipeline.commands import Step
from keyekit.cli.pipeline.orphans import bound
from keyekit.cli.pipeline.record import Record

__all__ = ["STOPPED", "State", "Work"]

State = Literal["waiting", "running", "done", "as it was", "failed", "stopped", "to submit", "blocked"]

STOPPED = tuple(128 + number for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM))
"""Statuses of a fit that was told to stop, and saved."""

_PROGRESS = re.compile(r"^([A-Za-z][\w ]*?) (\d+)/(\d+|\?)(?: · (.*))?$")
_TAIL = 8192


@dataclass(kw_only=True)
class Work:
    """A stage of a run.

    Args:
        name: The stage.
        needs: Stages that have to be done first.
        folder: Where it writes.
        log: Where its processes' output goes.
        steps: Its processes.
        record: What is known of it.
        threads: Processor threads of each process; ``None`` leaves that to torch.
        state: How far it is.
    """

    name: str
    needs: tuple[str, ...]
    folder: Path
    log: Path
    steps: Sequence[Step]
    record: Record
    threads: int | None = None
    state: State = "waiting"
    status: int | None = field(default=None, init=False)
    """Exit status of the last process."""
    _process: subprocess.Popen | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)

    @property
    def left(self) -> list[Step]:
        """Processes that are not done."""
        return [step for step in self.steps if step.name not in self.record.done]

    @property
    def seconds(self) -> float:
        """Time of all its processes so far, in all runs."""
        running = time.monotonic() - self._began if self._process is not None else 0.0
        return self.record.seconds + running

    def start(self, inherited: Sequence[int]) -> None:
        """Start the next process.

        Args:
            inherited: Files that the process keeps open, such as the lock of the pipeline.
        """
        step = self.left[0]
        self.record.write(self.folder)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            log.write(f"$ {step}\n".encode())
            log.flush()
            # A session of its own: Ctrl-C reaches the pipeline alone, which tells its stages once.
            self._process = subprocess.Popen(
                bound(step.command),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment(os.environ),
                pass_fds=inherited,
                start_new_session=True,
            )
        self._began = time.monotonic()
        self.state = "running"

    def poll(self) -> bool:
        """Look whether the process has ended; a stage with another process left is ``waiting`` again.

        Returns:
            Whether the state changed.
        """
        if self._process is None:
            return False
        status = self._process.poll()
        if status is None:
            return False
        seconds = time.monotonic() - self._began
        self._process, self.status = None, status
        self.record.seconds += seconds
        if status == 0:
            self.record.done[self.left[0].name] = seconds
            self.state = "waiting" if self.left else "done"
        else:
            self.state = "stopped" if status in STOPPED or -status in (signal.SIGINT, signal.SIGTERM) else "failed"
        self.record.write(self.folder)
        return True

    def tell(self, number: int) -> None:
        """Send a signal to the process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def progress(self) -> tuple[str, str]:
        """Steps done and what its last line of progress says, while it runs."""
        for line in reversed(self.tail()):
            found = _PROGRESS.match(line)
            if found:
                return f"{found[1]} {found[2]}/{found[3]}", found[4] or ""
            if line.startswith("$ "):
                break
        return "", ""

    def tail(self, lines: int | None = None) -> list[str]:
        """The last lines of the log."""
        if not self.log.is_file():
            return []
        with self.log.open("rb") as log:
            log.seek(max(self.log.stat().st_size - _TAIL, 0))
            found = log.read().decode("utf-8", errors="replace").splitlines()
        return found if lines is None else found[-lines:]

    def _environment(self, base: Mapping[str, str]) -> dict[str, str]:
        environment = {**base, "PYTHONUNBUFFERED": "1"}
        if self.threads is not None and "OMP_NUM_THREADS" not in base:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment
