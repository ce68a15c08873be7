"""The contract of a source: so many samples, each read by its number, each with a name that never changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from keyekit.data.conversations.base import ConversationFormat
from keyekit.data.conversations.messages import Messages
from keyekit.data.sample import Sample
from keyekit.data.sources.files import Stamp, find_files

__all__ = ["Record", "ShardedSource", "Source"]


class Record(NamedTuple):
    """One entry of a file before its format is understood.

    Args:
        value: The decoded JSON value, or row.
        place: Where it is, such as ``train.jsonl:12``; it never changes and names samples that have no name of their own.
        folder: What relative media paths are relative to.
    """

    value: Any
    place: str
    folder: Path


class Source(ABC):
    """Base of the sources: a sequence of samples with random access.

    A source may be sent to other processes, and is cheap to make: files are first looked at when something is asked for.

    Args:
        format: How an entry is understood; the ``messages`` convention by default.
    """

    def __init__(self, format: ConversationFormat | None = None) -> None:
        self.format = format or Messages()

    @abstractmethod
    def __len__(self) -> int:
        """Number of entries, good and bad."""

    @abstractmethod
    def record(self, index: int) -> Record:
        """Read one entry.

        Raises:
            BadData: If it cannot be read; the message names file and entry.
        """

    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            IndexError: If there is none of that number.
            BadData: If it cannot be read or breaks the format; the message names file, entry and field.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"there is no sample {index}: the source has {len(self)}")
        value, place, folder = self.record(index)
        return self.format.parse(value, place, folder)

    def fingerprint(self) -> str:
        """What the source is made of, as text: changes when its files or their order do."""
        return f"{type(self).__name__}:{len(self)}"


class ShardedSource(Source):
    """Base of sources made of files of entries.

    Args:
        paths: Files, in this order; see :func:`~keyekit.data.sources.files.find_files` for patterns.
        media: Folder that relative media paths are relative to; by default the folder of each file.
        format: How an entry is understood; the ``messages`` convention by default.
    """

    def __init__(
        self, paths: str | list[str], media: str | None = None, format: ConversationFormat | None = None
    ) -> None:
        super().__init__(format)
        self.paths = paths
        self.media = media

    @abstractmethod
    def open(self, path: Path) -> Any:
        """What is kept about a file: its index. Anything with a length."""

    @abstractmethod
    def read(self, shard: Any, path: Path, index: int) -> Record:
        """Read one entry of a file."""

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files, in order."""
        return find_files(self.paths)

    @cached_property
    def _shards(self) -> tuple[Any, ...]:
        return tuple(self.open(path) for path in self.files)

    @cached_property
    def _starts(self) -> Sequence[int]:
        return [0, *accumulate(len(shard) for shard in self._shards)]

    def __len__(self) -> int:
        return self._starts[-1]

    def record(self, index: int) -> Record:
        """Read one entry.

        Raises:
            BadData: If it cannot be read; the message names file and entry.
        """
        number = bisect_right(self._starts, index) - 1
        return self.read(self._shards[number], self.files[number], index - self._starts[number])

    def folder_of(self, path: Path) -> Path:
        """What media paths in a file are relative to."""
        return path.parent if self.media is None else Path(self.media)

    def fingerprint(self) -> str:
        """Names, numbers of entries, sizes and times of the files, in order."""
        shards = zip(self.files, self._shards, strict=True)
        return "\n".join(f"{type(self).__name__}:{path}:{len(shard)}:{Stamp.of(path)}" for path, shard in shards)
