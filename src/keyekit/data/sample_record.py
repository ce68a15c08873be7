"""Samples as the records that they are read from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from keyekit.data.location import Location
from keyekit.data.sample import ContentItem, Message, Sample

__all__ = ["sample_record"]


def sample_record(sample: Sample, folder: Path) -> dict[str, Any]:
    """What :func:`~keyekit.data.sample.parse_sample` reads the same sample from.

    Args:
        sample: The sample.
        folder: Where the file with the record will lie; paths of media are written relative to it, addresses as they are.

    Example:
        >>> from keyekit.data.sample import parse_sample
        >>> record = {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}
        >>> made = sample_record(parse_sample(record, "f:1", Path("old")), Path("new"))
        >>> made["messages"][0]["content"][0]["image"]
        '../old/a.png'
    """
    record: dict[str, Any] = {
        "id": sample.id,
        "task": sample.task,
        "messages": [_turn(message, folder) for message in sample.messages],
    }
    if sample.answer is not None:
        record["answer"] = sample.answer
    if sample.meta:
        record["meta"] = sample.meta
    return record


def _turn(message: Message, folder: Path) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": [_item(item, folder) for item in message.content]}
    parts = {"thought": message.thought, "analysis": message.analysis}
    return turn | {name: value for name, value in parts.items() if value is not None}


def _item(item: ContentItem, folder: Path) -> dict[str, Any]:
    if item.kind == "text":
        return {"type": "text", "text": item.text} | ({} if item.learnt else {"learnt": False})
    if item.path is None:
        return {"type": item.kind}
    several = isinstance(item.path, tuple)
    paths = [_place(path, folder) for path in (item.path if isinstance(item.path, tuple) else (item.path,))]
    return {"type": item.kind, item.kind: paths if several else paths[0], **item.options}


def _place(location: Location, folder: Path) -> str:
    if isinstance(location, str):
        return location
    return Path(os.path.relpath(location, folder)).as_posix()
