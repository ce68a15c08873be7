"""Replace a folder at once: readers see the old one or the new one, whole."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keyekit.models.weights.layout import LAYOUT

__all__ = ["PARTIAL", "companions", "replacing"]

PARTIAL = ".partial"
"""Ending of the folder that is being written."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.distcp", ".metadata", LAYOUT)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextmanager
def replacing(folder: Path | str) -> Iterator[Path]:
    """Write a folder beside ``folder``, then swap the two.

    After an error or a kill ``folder`` is as it was. Files of the old folder that hold no weights and were not written anew,
    such as a tokenizer, move on to the new one.

    Args:
        folder: What to replace, or to make.

    Yields:
        The sibling ``<folder>.partial`` to write into.

    Raises:
        FileExistsError: If ``folder`` has folders inside, as no checkpoint does: replacing it would lose them.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "export"
        >>> with replacing(target) as partial:
        ...     _ = (partial / "config.json").write_text("{}")
        >>> [path.name for path in target.iterdir()]
        ['config.json']
    """
    target = Path(folder).resolve()
    inside = next((path for path in target.iterdir() if path.is_dir()), None) if target.exists() else None
    if inside is not None:
        problem = (
            f"holds the folder {inside.name!r}, which no checkpoint does: choose a folder of its own for the weights"
        )
        raise FileExistsError(errno.EEXIST, problem, str(target))
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)  # left by an interrupted run
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in companions(target):
            if not (partial / path.name).exists():
                shutil.copy2(path, partial / path.name)
        _sync(partial)
        _swap(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # the old folder, or what an error left


def companions(folder: Path) -> list[Path]:
    """Files of a checkpoint that hold no weights: config, tokenizer, processor, remote code."""
    if not folder.is_dir():
        return []
    weights = {path for pattern in _WEIGHTS for path in folder.glob(pattern)}
    return sorted(path for path in folder.iterdir() if path.is_file() and path not in weights)


def _swap(partial: Path, target: Path) -> None:
    """Give ``partial`` the place of ``target``, and ``target`` that of ``partial``."""
    if not target.exists():
        partial.rename(target)
    elif not _exchange(partial, target):
        # No exchange on this system: for an instant neither is at its place. A kill then leaves both beside it, whole.
        previous = target.with_name(target.name + ".previous")
        target.rename(previous)
        try:
            partial.rename(target)
        except OSError:
            previous.rename(target)
            raise
        shutil.rmtree(previous, ignore_errors=True)
    _sync_folder(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; ``False`` where the system or file system has no such call."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
