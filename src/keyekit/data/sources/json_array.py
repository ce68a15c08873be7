"""A file that is one JSON array, as the LLaVA family of datasets is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.sources.base import Record, ShardedSource

__all__ = ["JsonArray"]


class JsonArray(ShardedSource):
    """One JSON array of conversations a file. The whole file is held in memory: make JSON lines of a large one.

    Args:
        paths: Files, in this order; see :func:`~keyekit.data.sources.files.find_files` for patterns.
        media: Folder that relative media paths are relative to; by default the folder of each file.
        format: How an entry is understood; the ``messages`` convention by default.
    """

    def open(self, path: Path) -> list[Any]:
        """All entries of a file.

        Raises:
            BadData: If the file is no JSON array.
        """
        try:
            entries = json.loads(path.read_bytes().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BadData("bad_file", f"{path}: not valid JSON: {error}") from error
        if not isinstance(entries, list):
            raise BadData(
                "bad_file", f"{path}: a JSON array of conversations is wanted, this is {type(entries).__name__}"
            )
        return entries

    def read(self, shard: list[Any], path: Path, index: int) -> Record:
        """One entry."""
        return Record(shard[index], f"{path}[{index}]", self.folder_of(path))
