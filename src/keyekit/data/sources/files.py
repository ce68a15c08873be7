"""Files that are read by byte range: found by pattern, recognised by size and time, with an index kept beside them."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from keyekit.data.errors import BadData

__all__ = ["Stamp", "find_files", "read_range", "stored_index"]

_log = logging.getLogger(__name__)
_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


class Stamp(NamedTuple):
    """By what a file is recognised.

    Args:
        size: Bytes.
        mtime_ns: Time of the last change in nanoseconds.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file as it is now.

        Raises:
            BadData: With reason ``missing_shard`` if it is not there.
        """
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise BadData("missing_shard", f"{path} is gone: put it back, or take it out of the sources") from error
        return cls(status.st_size, status.st_mtime_ns)


def find_files(paths: str | Sequence[str]) -> tuple[Path, ...]:
    """Files that paths name, in a fixed order.

    Args:
        paths: One path or several; ``*`` and ``?`` stand for whatever is there, ``{000..012}`` for numbers and ``{a,b}`` for
            words, as shards are usually named.

    Raises:
        FileNotFoundError: If a path names nothing that is there.

    Example:
        >>> find_files("train-{000..002}.tar")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] there is no such file of samples: 'train-000.tar'
    """
    found: list[Path] = []
    for pattern in [paths] if isinstance(paths, str) else paths:
        for path in _expanded(pattern):
            matches = [Path(path)] if Path(path).is_file() else _matching(path)
            if not matches:
                raise FileNotFoundError(errno.ENOENT, "there is no such file of samples", path)
            found += matches
    return tuple(found)


def _matching(pattern: str) -> list[Path]:
    path = Path(pattern)
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if set(pattern) & set("*?[") else []


def _expanded(pattern: str) -> list[str]:
    braces = _BRACES.search(pattern)
    if braces is None:
        return [pattern]
    numbers = _NUMBERS.fullmatch(braces[1])
    if numbers is None:
        words = braces[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        words = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    return [whole for word in words for whole in _expanded(pattern[: braces.start()] + word + pattern[braces.end() :])]


def read_range(path: Path, stamp: Stamp, start: int, size: int) -> bytes:
    """Bytes of a file that must not have changed since it was indexed.

    The file is opened for every range: so a source can be sent to other processes, and a file that vanishes is noticed at once.

    Raises:
        BadData: With reason ``missing_shard`` if it is gone, ``changed_shard`` if it is another one by now.
    """
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if Stamp(status.st_size, status.st_mtime_ns) == stamp:
                file.seek(start)
                content = file.read(size)
                if len(content) == size:
                    return content
    except FileNotFoundError as error:
        raise BadData("missing_shard", f"{path} is gone since it was indexed: put it back and resume") from error
    except OSError as error:  # a network file system that does not answer, a directory of that name
        raise BadData("missing_shard", f"{path} cannot be read any more: {error}") from error
    raise BadData(
        "changed_shard", f"{path} has changed since it was indexed: put the former file back, or begin a new run"
    )


def stored_index(path: Path, version: int, build: Callable[[], bytes]) -> bytes:
    """The index of a file, built once and kept beside it as ``<name>.index``: a line of JSON that says of what, then its bytes.

    A stored index counts if it is of this version and the file has the size and time that it had. Where nothing can be written
    beside the file the index is built anew by every process, and that is logged.

    Args:
        path: The file.
        version: Version of what ``build`` returns.
        build: Makes the index.
    """
    beside = path.with_name(path.name + ".index")
    head = json.dumps({"index_of": path.name, "version": version, **Stamp.of(path)._asdict()}).encode() + b"\n"
    try:
        stored = beside.read_bytes()
    except OSError:  # there is none yet
        stored = b""
    if stored.startswith(head):
        return stored[len(head) :]
    index = build()
    partial = beside.with_name(f"{beside.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(head + index)
        partial.replace(beside)
    except OSError as error:
        _log.warning("the index of %s cannot be kept (%s): every process builds it anew", path, error)
        with suppress(OSError):
            partial.unlink()
    return index
