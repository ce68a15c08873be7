"""Watching a confined program from inside its namespaces: what it says, what it uses, and its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from keyekit.sandbox.view import TEMPORARY

__all__ = ["end_everything", "supervise"]

_PAUSE = 0.02
"""Seconds between two looks at the processes."""

_CHUNK = 65536
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_BY_SIGNAL = {int(signal.SIGXCPU): "cpu", int(signal.SIGSYS): "forbidden"}
_OUT_OF_MEMORY = (b"MemoryError", b"numpy._core._exceptions._ArrayMemoryError")


class _Use:
    """What all processes of the namespace use at the moment, apart from this one."""

    def __init__(self) -> None:
        self.memory = self.threads = 0
        ticks = 0
        for name in os.listdir("/proc"):
            if not name.isdigit() or name == "1":
                continue
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it has ended meanwhile
            ticks += int(fields[11]) + int(fields[12])
            self.threads += int(fields[17])
            self.memory += int(fields[21]) * _PAGE
        times = os.times()
        self.seconds = ticks / _TICKS + times.children_user + times.children_system


def supervise(program: int, output: int, errors: int, limits: dict[str, float]) -> tuple[dict, bytes, bytes]:
    """Wait for a program's end, or bring it about when it exceeds a limit; nothing of it lives afterwards.

    Args:
        program: Its process; this process is the first one of its namespace, so that it inherits all orphans.
        output: Where its standard output is read.
        errors: Where its standard error is read.
        limits: ``seconds``, ``cpu_seconds``, ``memory``, ``processes`` and ``output``.

    Returns:
        ``reason``, ``exit`` (negative for a signal), ``seconds`` and ``peak_memory``; then what it said on both streams.
    """
    start, peak, reason, status = time.monotonic(), 0, "", None
    said: dict[int, bytearray] = {output: bytearray(), errors: bytearray()}
    end = os.pidfd_open(program)
    poll = select.poll()
    for descriptor in (*said, end):
        os.set_blocking(descriptor, False)
        poll.register(descriptor, select.POLLIN)
    while status is None and not reason:
        for descriptor, _ in poll.poll(_PAUSE * 1000):
            if descriptor in said and not _read(descriptor, said, limits["output"]):
                poll.unregister(descriptor)
        status, used = _reap(program)
        use = _Use()
        peak = max(peak, use.memory, used)
        reason = _exceeded(use, time.monotonic() - start, sum(map(len, said.values())), limits)
    seconds = time.monotonic() - start
    disk_full = _disk_is_full()
    late, used = end_everything(program)
    status, peak = late if status is None else status, max(peak, used)
    for descriptor in said:
        while len(said[descriptor]) <= limits["output"] and _read(descriptor, said, limits["output"]):
            pass
    if not reason:
        overflow = sum(map(len, said.values())) > limits["output"]
        reason = "output" if overflow else _told_by(status, bytes(said[errors]), disk_full)
    outcome = {"reason": reason, "exit": status, "seconds": seconds, "peak_memory": peak}
    return outcome, _cut(said[output], limits), _cut(said[errors], limits)


def end_everything(program: int) -> tuple[int | None, int]:
    """Kill and bury every process of the namespace; the program's exit status and memory, where it was among them."""
    status, memory = None, 0
    while True:
        with contextlib.suppress(ProcessLookupError):  # all dead; some may have to be buried
            os.kill(-1, signal.SIGKILL)
        try:
            process, found, resources = os.wait4(-1, 0)
        except ChildProcessError:
            return status, memory
        memory = max(memory, resources.ru_maxrss * 1024)
        if process == program:
            status = os.waitstatus_to_exitcode(found)


def _reap(program: int) -> tuple[int | None, int]:
    """Bury what is dead, so that zombies do not fill the namespace; the program's exit status if it is among them."""
    status, memory = None, 0
    while True:
        try:
            process, found, resources = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return status, memory
        if not process:
            return status, memory
        if process == program:
            status, memory = os.waitstatus_to_exitcode(found), resources.ru_maxrss * 1024


def _read(descriptor: int, said: dict[int, bytearray], most: float) -> bool:
    """Read once; whether there may be more to come."""
    try:
        chunk = os.read(descriptor, _CHUNK)
    except BlockingIOError:
        return False
    if len(said[descriptor]) <= most:
        said[descriptor] += chunk
    return bool(chunk)


def _exceeded(use: _Use, seconds: float, output: int, limits: dict[str, float]) -> str:
    """Name of the first limit that is exceeded, or nothing."""
    for name, value, limit in (
        ("processes", use.threads, limits["processes"]),
        ("memory", use.memory, limits["memory"]),
        ("output", output, limits["output"]),
        ("cpu", use.seconds, limits["cpu_seconds"]),
        ("time", seconds, limits["seconds"]),
    ):
        if value > limit:
            return name
    return "disk" if _disk_is_full() else ""


def _disk_is_full() -> bool:
    state = os.statvfs(TEMPORARY)
    return not (state.f_bavail and state.f_favail)


def _told_by(status: int | None, errors: bytes, disk_full: bool) -> str:
    """Why a program ended by itself."""
    if status == 0:
        return "finished"
    if disk_full:
        return "disk"
    if status is not None and status < 0:
        return _BY_SIGNAL.get(-status, "crashed")
    last = errors.rstrip().rpartition(b"\n")[2]
    return "memory" if last.startswith(_OUT_OF_MEMORY) else "failed"


def _cut(text: bytearray, limits: dict[str, float]) -> bytes:
    return bytes(text[: int(limits["output"])])
