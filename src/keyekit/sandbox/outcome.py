"""What came of a confined program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Outcome", "Reason"]


class Reason(Enum):
    """Why a program ended; the value is what counters call it."""

    FINISHED = "finished"
    """By itself, with status 0."""

    FAILED = "failed"
    """By itself, with another status, as after an uncaught exception."""

    CRASHED = "crashed"
    """By a signal."""

    TIME = "time"
    """It took too long."""

    CPU = "cpu"
    """It computed for too long."""

    MEMORY = "memory"
    """It used too much memory, or was refused more and gave up."""

    DISK = "disk"
    """It filled the temporary folder."""

    OUTPUT = "output"
    """It said too much."""

    PROCESSES = "processes"
    """It had too many processes or threads."""

    FORBIDDEN = "forbidden"
    """It made a system call that only an attack makes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A program's end, and what it left.

    Args:
        reason: Why it ended.
        exit: Its exit status; the negative number of the signal that ended it.
        stdout: What it said on standard output, up to the limit.
        stderr: The same for standard error.
        seconds: From its start to its end.
        peak_memory: Most bytes that its processes had in memory at once, as far as was seen.
        files: Contents of the files that were asked for and are there.
    """

    reason: Reason
    exit: int
    stdout: bytes
    stderr: bytes
    seconds: float
    peak_memory: int
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it ended by itself and without an error."""
        return self.reason is Reason.FINISHED

    @property
    def complaint(self) -> str:
        """Why it did not finish, in one line: the last of its standard error, or the limit; empty if it did."""
        if self.finished:
            return ""
        lines = self.stderr.decode(errors="replace").strip().splitlines()
        if self.reason in (Reason.FAILED, Reason.CRASHED):
            return lines[-1] if lines else f"{self.reason.value} with status {self.exit}"
        return f"ended by the sandbox: {self.reason.value}"
