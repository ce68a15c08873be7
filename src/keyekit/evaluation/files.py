"""Reading the files in which benchmarks keep their questions: tables, JSON and JSONL, with errors that name the place."""

from __future__ import annotations

import ast
import csv
import errno
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from keyekit.data.errors import BadData

__all__ = ["field", "first_existing", "read_json", "read_list", "read_table"]

_LONGEST_CELL = 2**30
"""Tables of this kind may hold whole images in a cell."""


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: If it does not exist.
        BadData: If it is not JSON.
    """
    _require(path)
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadData("bad_benchmark", f"{path}: not readable as JSON: {error}") from error


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``.tsv`` or ``.parquet`` file by column; cells of a TSV are text, empty ones ``None``.

    Raises:
        FileNotFoundError: If the file does not exist.
        BadData: If it cannot be read, or a row has more cells than there are columns.
        ModuleNotFoundError: If it is Parquet and pyarrow is not installed.
    """
    _require(path)
    return _parquet(path) if path.suffix == ".parquet" else _tsv(path)


def _tsv(path: Path) -> list[dict[str, Any]]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", strict=True))
    except (csv.Error, ValueError) as error:
        raise BadData("bad_benchmark", f"{path}: not readable as a table with tabs: {error}") from error
    finally:
        csv.field_size_limit(before)
    for number, row in enumerate(rows, 1):
        if None in row:
            raise BadData("bad_benchmark", f"{path}, row {number}: more cells than the head has columns")
    return [{name: value or None for name, value in row.items()} for row in rows]


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        error.add_note(f"{path} is Parquet: pip install pyarrow")
        raise
    try:
        return parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise BadData("bad_benchmark", f"{path}: not readable as Parquet: {error}") from error


def field(row: dict[str, Any], name: str, place: str) -> Any:
    """A value that every question must have.

    Raises:
        BadData: If it is missing or empty.
    """
    value = row.get(name) if isinstance(row, dict) else None
    if value is None:
        known = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise BadData("bad_benchmark", f"{place}: {name!r} is missing; there are {known}")
    return value


def read_list(value: Any, place: str) -> list[str]:
    """A list, or a text that is one as Python writes it; any other text is a list of itself.

    Example:
        >>> read_list("['a.jpg', 'b.jpg']", "row 1"), read_list("a.jpg", "row 2")
        (['a.jpg', 'b.jpg'], ['a.jpg'])
    """
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError) as error:
            raise BadData("bad_benchmark", f"{place}: {value[:80]!r} is no list: {error}") from error
    return [str(entry) for entry in value] if isinstance(value, list | tuple) else [str(value)]


def first_existing(folder: Path, names: Iterable[str], what: str) -> Path:
    """The first of several names under which something may lie in a folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    names = list(names)
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(errno.ENOENT, f"there is no {what}: expected {' or '.join(names)}", str(folder))


def _require(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such file of a benchmark", str(path))
