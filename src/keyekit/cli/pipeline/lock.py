"""One process at a time runs a pipeline: a lock that the stages hold too, so that it outlives a killed pipeline."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keyekit.cli.errors import CommandError

__all__ = ["locked"]

_PATIENCE = 60.0
"""Seconds that the stages of a killed pipeline get to save and end."""


@contextmanager
def locked(folder: Path, patience: float = _PATIENCE) -> Iterator[int]:
    """Hold a pipeline's folder.

    Args:
        folder: Where the pipeline writes.
        patience: Seconds to wait for what a killed pipeline left running.

    Yields:
        The open file; a process that inherits it holds the lock as well.

    Raises:
        CommandError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        _acquire(handle, path, patience)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield handle
    finally:
        os.close(handle)


def _acquire(handle: int, path: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode() or "another process"
        if _is_alive(owner):
            raise CommandError(f"{path.parent} is being run by process {owner}: wait for it, or stop it first")
        if time.monotonic() > deadline:
            raise CommandError(
                f"stages of process {owner}, which has ended, still run in {path.parent} (fuser {path} lists them): stop them"
            )
        if not told:
            print(f"waiting for stages that process {owner} left behind to save and end", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.1)


def _is_alive(owner: str) -> bool:
    if not owner.isdecimal():
        return False
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
