"""One line for each question that was asked, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["AnswerLog", "LogError"]


class LogError(ValueError):
    """A log belongs to another evaluation, or cannot be read."""


class AnswerLog:
    """A JSONL file whose first line holds the settings of the evaluation.

    A line that was cut off when the process died is dropped. A question that is asked again, because its media could not be
    read before, has a second line, which counts.

    Args:
        path: The file; it need not exist.
        settings: What the answers depend on, as JSON can hold it.

    Raises:
        LogError: If the file belongs to an evaluation with other settings, or is no log.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.records: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_size:
            self._read(settings)
        if not path.is_file() or not path.stat().st_size:
            self._write({"settings": settings})

    @property
    def answered(self) -> set[str]:
        """Questions that need not be asked again."""
        return {name for name, record in self.records.items() if "error" not in record}

    def append(self, record: dict[str, Any]) -> None:
        """Write the record of a question; its ``id`` names it."""
        self.records[record["id"]] = record
        self._write(record)

    def _write(self, record: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")

    def _read(self, settings: dict[str, Any]) -> None:
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):  # the process died while it wrote this line
            with self.path.open("rb+") as lines:
                lines.truncate(whole)
        records = list(self._records(text[:whole]))
        if not records:
            return
        before = records[0].get("settings")
        if before is None:
            raise LogError(f"{self.path} is no log of an evaluation: choose another --output")
        different = sorted(_differences(before, json.loads(json.dumps(settings))))
        if different:
            raise LogError(
                f"{self.path} holds answers of an evaluation with other settings ({'; '.join(different)}): choose another "
                "--output, or remove it to begin anew"
            )
        self.records = {record["id"]: record for record in records[1:]}

    def _records(self, text: bytes) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(text.splitlines(), 1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or not ("settings" in record if number == 1 else "id" in record):
                    raise ValueError("no record of an evaluation")
            except ValueError as error:
                raise LogError(f"{self.path}:{number}: {error}: choose another --output") from error
            yield record


def _differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Settings that are not the same, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield f"{name} was {before!r}, is {now!r}"
