"""Checkpoints that are whole or not there: how they get their name, and how a cut one is told from a whole one."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

__all__ = ["COMPLETE", "PARTIAL", "mark_complete", "newest_whole", "problem_of", "put_in_place", "remove_partial"]

PARTIAL = ".partial"
"""Ending of a checkpoint that is being written."""

COMPLETE = "complete.json"
"""File of a checkpoint folder that is written last: all other files with their sizes."""

_PREVIOUS = ".previous"
_STEP = re.compile(r"step=(\d+)")

_log = logging.getLogger(__name__)


def put_in_place(partial: Path, target: Path) -> None:
    """Give a file or folder that is on the disk its name; a kill leaves the old one, the new one, or both.

    Args:
        partial: What was written.
        target: Its name.
    """
    previous = target.with_name(target.name + _PREVIOUS)
    if target.is_dir() and not target.is_symlink():  # a rename replaces files alone
        shutil.rmtree(previous, ignore_errors=True)
        target.rename(previous)
    partial.replace(target)
    _sync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def mark_complete(folder: Path, **facts: Any) -> None:
    """Write :data:`COMPLETE` into a folder whose files are all there, and bring it to the disk.

    Args:
        folder: The folder.
        **facts: What else the file says.
    """
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != COMPLETE}
    marker = folder / COMPLETE
    with marker.open("w", encoding="utf-8") as file:
        json.dump({**facts, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def problem_of(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or ``None`` if it is whole.

    A file is a zip archive, whose directory stands at its end: one that was cut has none. A folder has a list of its files.

    Args:
        checkpoint: A ``.ckpt`` file or folder.
    """
    if checkpoint.name.endswith(PARTIAL):
        return "it was being written when its process ended"
    if checkpoint.is_dir():
        return _problem_of_folder(checkpoint)
    if not checkpoint.is_file():
        return "it is not there"
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        return f"it is cut off or damaged at {checkpoint.stat().st_size:,} bytes ({error})"
    return None


def _problem_of_folder(folder: Path) -> str | None:
    marker = folder / COMPLETE
    try:
        files: dict[str, int] = json.loads(marker.read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {COMPLETE}, which is written last"
    except (ValueError, KeyError, TypeError):
        return f"its {COMPLETE} is damaged"
    for name, size in files.items():
        path = folder / name
        there = path.stat().st_size if path.is_file() else None
        if there != size:
            return f"{name} is missing" if there is None else f"{name} has {there:,} of {size:,} bytes"
    return None


def newest_whole(folder: Path, warn: bool = True) -> Path | None:
    """The checkpoint that was written last and is whole, among those in a folder.

    Newer ones that are not whole are named in a warning, together with the one that is taken.

    Args:
        folder: A run's ``checkpoints/``; it may be missing.
        warn: Whether to warn.

    Returns:
        ``None`` if no whole one is there.
    """
    if not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if _is_named(path.name) and not path.is_symlink()]
    broken: list[str] = []
    chosen = None
    for path in sorted(found, key=_age):
        problem = problem_of(path)
        if problem is None:
            chosen = path
            break
        broken.append(f"{path} cannot be used: {problem}")
    if broken and warn:
        rest = f"taking {chosen}, the last whole one" if chosen is not None else "there is no whole one beside it"
        _log.warning("%s; %s", "; ".join(broken), rest)
    return chosen


def remove_partial(folder: Path) -> None:
    """Remove what interrupted processes left half written in a folder."""
    for path in folder.glob(f"*{PARTIAL}") if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_named(name: str) -> bool:
    return name.removesuffix(_PREVIOUS).endswith(".ckpt")


def _age(path: Path) -> tuple[int, int]:
    """Sorts the newest first; by the step in the name where clocks cannot tell."""
    marker = path / COMPLETE
    changed = (marker if marker.exists() else path).stat().st_mtime_ns
    step = _STEP.search(path.name)
    return -changed, -int(step[1]) if step else 0


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
