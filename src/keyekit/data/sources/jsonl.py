"""Files with one JSON object a line."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.sample import Sample, parse_sample
from keyekit.data.sources.base import Record, ShardedSource
from keyekit.data.sources.files import Stamp, read_range, stored_index

__all__ = ["JsonLines", "read_jsonl"]

_VERSION = 1
_CHUNK = 2**24
_NEWLINE = 10
_WHITESPACE = (9, 10, 11, 12, 13, 32)


class _Lines(NamedTuple):
    """Where the lines of a file begin and end that are not blank, and their numbers."""

    stamp: Stamp
    starts: np.ndarray
    stops: np.ndarray
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)


class JsonLines(ShardedSource):
    """JSON, one conversation a line; blank lines are allowed.

    A line is found through an index of byte offsets, which is built when a file is first read and kept beside it: a file of a
    million lines is then ready at once, whichever line is wanted.

    Args:
        paths: Files, in this order; see :func:`~keyekit.data.sources.files.find_files` for patterns.
        media: Folder that relative media paths are relative to; by default the folder of each file.
        format: How a line is understood; the ``messages`` convention by default.
    """

    def open(self, path: Path) -> _Lines:
        """Where the lines of a file are."""
        stamp = Stamp.of(path)
        index = stored_index(path, _VERSION, lambda: _lines_of(path).astype("<i8").tobytes())
        return _Lines(stamp, *np.frombuffer(index, dtype="<i8").reshape(3, -1))

    def read(self, shard: _Lines, path: Path, index: int) -> Record:
        """Read one line."""
        start, place = int(shard.starts[index]), f"{path}:{shard.numbers[index]}"
        line = read_range(path, shard.stamp, start, int(shard.stops[index]) - start)
        return Record(_decode(line, place), place, self.folder_of(path))


def _lines_of(path: Path) -> np.ndarray:
    """``[3, lines]``: first byte, one past the last byte, and number of each line that is not blank."""
    ends, offset = [], 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            ends.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == _NEWLINE) + offset)
            offset += len(chunk)
        if not offset:
            return np.zeros((3, 0), dtype=np.int64)
        stops = np.concatenate([*ends, [offset]])
        starts = np.concatenate([[0], stops[:-1] + 1])
        content = np.memmap(file, dtype=np.uint8, mode="r")
        blank = starts >= stops
        suspicious = ~blank & np.isin(content[np.minimum(starts, offset - 1)], _WHITESPACE)
        for line in np.flatnonzero(suspicious).tolist():
            blank[line] = not content[starts[line] : stops[line]].tobytes().strip()
    numbers = np.arange(1, len(starts) + 1)
    return np.stack([starts, stops, numbers])[:, ~blank]


def read_jsonl(path: Path | str, policy: ErrorPolicy) -> list[Sample]:
    """Read a file with one conversation per line at once; blank lines are allowed.

    Args:
        path: JSONL file; media paths inside are relative to its folder.
        policy: What a broken line does, and a file that holds no usable sample (``empty_manifest``).

    Raises:
        FileNotFoundError: If the file does not exist.
        BadData: For a broken line, if the policy raises; the message names file and line. For an empty file likewise.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such manifest of samples", str(path))
    samples, broken = [], 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                samples.append(parse_sample(_decode(line, place), place, path.parent))
            except BadData as error:
                policy.handle(error)
                broken += 1
    if not samples:
        problem = f"{path} holds no usable sample ({broken} broken lines): every line must be one JSON conversation"
        policy.handle(BadData("empty_manifest", problem))
    return samples


def _decode(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise BadData("bad_line", f"{place}: not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, brackets without end
        raise BadData("bad_line", f"{place}: not readable: {error}") from error
