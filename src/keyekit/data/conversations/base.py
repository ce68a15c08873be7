"""The contract of a conversation format, and what several formats share."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.sample import Sample, parse_sample, shown

__all__ = ["ConversationFormat", "Fields", "split_markers"]

_MARKER = re.compile(r"\n?<(image|video)>\n?")


class ConversationFormat(ABC):
    """Base of the formats: an entry of a file becomes a sample."""

    @abstractmethod
    def messages(self, fields: Fields) -> list[dict[str, Any]]:
        """The turns of an entry in the ``messages`` convention.

        Raises:
            BadData: With reason ``bad_line`` if the entry breaks the format; the message names the field.
        """

    def parse(self, record: Any, place: str, folder: Path) -> Sample:
        """Check one entry and turn it into a sample.

        Args:
            record: The decoded JSON value, or row.
            place: Where it comes from, for errors and as the name of samples without one.
            folder: What relative media paths are relative to.

        Raises:
            BadData: With reason ``bad_line`` if the entry breaks the format; the message names place and field.
        """
        fields = Fields(record, place)
        common = {name: fields.value[name] for name in ("id", "task", "answer", "meta") if name in fields.value}
        if isinstance(
            common.get("answer"), list
        ):  # answers of several questions are part of the text, not one to compare
            del common["answer"]
        return parse_sample({**common, "messages": self.messages(fields)}, place, folder)


class Fields:
    """The fields of an entry, read with errors that say where and what.

    Args:
        value: The entry; has to be an object.
        place: Where it is.
        path: Fields that lead to it from the whole entry.

    Raises:
        BadData: If it is no object.
    """

    def __init__(self, value: Any, place: str, path: str = "") -> None:
        self.place = place
        self.path = path
        if not isinstance(value, dict):
            raise self.refuse(path or "the entry", f"a JSON object is wanted, this is {shown(value)}")
        self.value: dict[str, Any] = value

    def refuse(self, name: str, problem: str) -> BadData:
        """The error about a field."""
        inside = f"{self.path}.{name}" if self.path and name != self.path else name
        return BadData("bad_line", f"{self.place}: {inside}: {problem}")

    def text(self, name: str, default: str | None = None) -> str:
        """A field that is text; it has to be there if there is no default."""
        value = self.value.get(name, default)
        if not isinstance(value, str):
            raise self.refuse(name, f"text is wanted, got {shown(value)}")
        return value

    def paths(self, *names: str) -> list[str]:
        """Media paths in fields that hold one or a list of them, or are left out."""
        found: list[str] = []
        for name in names:
            value = self.value.get(name)
            for path in value if isinstance(value, list) else [] if value is None else [value]:
                if not isinstance(path, str):
                    raise self.refuse(name, f"a path or a list of paths is wanted, got {shown(path)}")
                found.append(path)
        return found

    def objects(self, name: str) -> Iterator[Fields]:
        """The objects of a field that is a list with at least one."""
        value = self.value.get(name)
        if not isinstance(value, list) or not value:
            raise self.refuse(name, f"a list with at least one entry is wanted, got {shown(value)}")
        for number, entry in enumerate(value):
            yield Fields(entry, self.place, f"{self.path}.{name}[{number}]" if self.path else f"{name}[{number}]")


def split_markers(text: str, media: dict[str, Iterator[str]], refuse: Any) -> list[dict[str, Any]]:
    """A text with ``<image>`` and ``<video>`` markers as content items; a line break beside a marker belongs to it.

    Args:
        text: The text.
        media: Paths of each kind that are still to come; the markers take them.
        refuse: Makes the error where there are more markers than media.
    """
    items: list[dict[str, Any]] = []
    end = 0
    for marker in _MARKER.finditer(text):
        items.append({"type": "text", "text": text[end : marker.start()]})
        kind, end = marker[1], marker.end()
        path = next(media[kind], None)
        if path is None:
            raise refuse(f"there are more <{kind}> markers than {kind}s")
        items.append({"type": kind, kind: path})
    items.append({"type": "text", "text": text[end:]})
    return [item for item in items if item["type"] != "text" or item["text"]]


def no_media_left(media: dict[str, Iterator[str]], fields: Fields, names: dict[str, str]) -> None:
    """Refuse an entry some of whose media no marker took.

    Args:
        media: What the markers left.
        fields: The entry.
        names: Field of each kind, for the error.
    """
    for kind, paths in media.items():
        left = len(list(paths))
        if left:
            raise fields.refuse(names[kind], f"{left} more than there are <{kind}> markers in the text")


def leading(paths: Sequence[str], kind: str) -> list[dict[str, Any]]:
    """Media as items, for entries that say nothing about where they stand."""
    return [{"type": kind, kind: path} for path in paths]
