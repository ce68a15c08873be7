"""Parquet files, one conversation a row."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keyekit.data.conversations.base import ConversationFormat
from keyekit.data.errors import BadData
from keyekit.data.sources.base import Record, ShardedSource
from keyekit.data.sources.files import Stamp
from keyekit.data.sources.unpacking import unpack

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Parquet"]


class _Rows(NamedTuple):
    """Where the row groups of a file begin."""

    stamp: Stamp
    starts: np.ndarray

    def __len__(self) -> int:
        return int(self.starts[-1])


class Parquet(ShardedSource):
    """Parquet, one conversation a row; needs ``pip install keyekit[parquet]``.

    A row group is read at once and the last few are kept, so rows that are wanted one after the other cost one read. Small row
    groups (a thousand rows, or some megabytes of media) suit a shuffled order. Values that are bytes, alone or with a file name
    beside (``{"bytes": …, "path": …}``, as the Hugging Face hub stores images), are media: they are written out once. Fields
    that are empty in a row count as left out, since a column holds what any row has.

    Args:
        paths: Files, in this order; see :func:`~keyekit.data.sources.files.find_files` for patterns.
        media: Folder that relative media paths are relative to; by default the folder of each file.
        format: How a row is understood; the ``messages`` convention by default.
        columns: Columns to read; ``None`` for all.
        json_columns: Columns whose text is JSON.
        unpacked: Folder for media that are inside the files; by default ``unpacked`` beside each file.
        row_groups: Row groups kept in memory.
    """

    def __init__(
        self,
        paths: str | list[str],
        media: str | None = None,
        format: ConversationFormat | None = None,
        columns: list[str] | None = None,
        json_columns: list[str] | None = None,
        unpacked: str | None = None,
        row_groups: int = 4,
    ) -> None:
        super().__init__(paths, media, format)
        self.columns = columns
        self.json_columns = tuple(json_columns or ())
        self.unpacked = unpacked
        self.row_groups = row_groups
        self._group = lru_cache(maxsize=row_groups)(_read_group)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_group"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._group = lru_cache(maxsize=self.row_groups)(_read_group)

    def open(self, path: Path) -> _Rows:
        """Where the row groups of a file begin, from its footer.

        Raises:
            BadData: If it is no Parquet file.
            ImportError: If pyarrow is not installed.
        """
        arrow = _arrow()
        stamp = Stamp.of(path)
        try:
            footer = arrow.read_metadata(path)
        except (OSError, ValueError) as error:
            raise BadData("bad_file", f"{path}: not a Parquet file: {error}") from error
        lengths = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        return _Rows(stamp, np.cumsum([0, *lengths]))

    def read(self, shard: _Rows, path: Path, index: int) -> Record:
        """Read one row."""
        place = f"{path}:{index + 1}"
        if Stamp.of(path) != shard.stamp:
            raise BadData("changed_shard", f"{path} has changed since it was opened: put the former file back")
        group = int(np.searchsorted(shard.starts, index, side="right")) - 1
        columns = None if self.columns is None else tuple(self.columns)
        rows = self._group(path, shard.stamp, group, columns)
        row = rows.slice(index - int(shard.starts[group]), 1).to_pylist()[0]
        for name in self.json_columns:
            row[name] = _parsed(row.get(name), f"{place}: column {name!r}")
        return Record(self._plain(row, path), place, self.folder_of(path))

    def _plain(self, value: Any, path: Path) -> Any:
        """The value without empty fields, its media as paths."""
        if isinstance(value, dict):
            if isinstance(value.get("bytes"), bytes):
                return self._unpacked(value["bytes"], value.get("path") or "", path)
            if value.keys() == {"bytes", "path"}:  # the picture is not inside
                return value["path"]
            return {name: self._plain(part, path) for name, part in value.items() if part is not None}
        if isinstance(value, list):
            return [self._plain(part, path) for part in value]
        return self._unpacked(value, "", path) if isinstance(value, bytes) else value

    def _unpacked(self, content: bytes, name: str, path: Path) -> str:
        folder = path.parent / "unpacked" if self.unpacked is None else Path(self.unpacked)
        return str(unpack(folder, content, name).absolute())


def _read_group(path: Path, stamp: Stamp, group: int, columns: tuple[str, ...] | None) -> pyarrow.Table:
    """Rows of a row group; the stamp is part of what the cache goes by."""
    arrow = _arrow()
    try:
        with arrow.ParquetFile(path) as file:
            return file.read_row_group(group, columns=columns, use_threads=False)
    except FileNotFoundError as error:
        raise BadData("missing_shard", f"{path} is gone since it was opened: put it back and resume") from error
    except (OSError, ValueError) as error:
        raise BadData("bad_file", f"{path}: row group {group} cannot be read: {error}") from error


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'keyekit[parquet]'") from error
    return pyarrow.parquet


def _parsed(text: Any, place: str) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadData("bad_line", f"{place} is not valid JSON: {error}") from error
