"""A sample: a conversation with media and, where known, a verifiable answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.location import Location, located
from keyekit.data.responses import Response, ResponseMode

__all__ = ["ContentItem", "Message", "Sample", "parse_sample", "shown"]

_ROLES = ("system", "user", "assistant", "tool")
_DOCUMENT = "document"
_MEDIA = ("image", "video")
_KINDS = ("text", *_MEDIA)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentItem:
    """A piece of a message.

    Args:
        kind: ``text``, ``image`` or ``video``; in documents also ``end``, an end token between two parts.
        text: The text of a text item.
        path: The file or address of a media item; of a video that is given as a list of images, all of theirs.
        options: Further keys of a media item, such as ``fps`` or ``max_frames``.
        learnt: Whether a text of a document is learnt; in turns the role decides.
    """

    kind: str
    text: str = ""
    path: Location | tuple[Location, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    learnt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn.

    Args:
        role: ``system``, ``user``, ``assistant``, or ``tool`` for what a tool shows after an assistant turn that called it; or
            ``document``, which stands alone and is no turn, but text with media.
        content: Its pieces in order.
        thought: What the assistant thinks before it answers; ``None`` where that is not known.
        analysis: How the assistant judges whether it has to think; ``None`` where that is not known.
    """

    role: str
    content: tuple[ContentItem, ...]
    thought: str | None = None
    analysis: str | None = None

    @property
    def text(self) -> str:
        """All text of the turn."""
        return "".join(item.text for item in self.content)

    def asking(self, suffix: str) -> Message:
        """The turn with something right behind its last text."""
        content = list(self.content)
        place = max((place for place, item in enumerate(content) if item.kind == "text"), default=None)
        if place is None:
            content.append(ContentItem(kind="text", text=suffix))
        else:
            content[place] = replace(content[place], text=content[place].text + suffix)
        return replace(self, content=tuple(content))

    def answered(self, mode: ResponseMode) -> Message:
        """The turn as it is said in a response mode; one with neither thought nor analysis is said as it is.

        Raises:
            ValueError: If the mode needs what the turn does not hold.
        """
        if self.thought is None and self.analysis is None:
            return self
        response = Response(answer=self.text, thought=self.thought, analysis=self.analysis)
        return replace(self, content=(ContentItem(kind="text", text=response.text(mode)),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A conversation.

    Args:
        id: Unique name.
        task: Task family; metrics are reported per task.
        messages: The turns.
        answer: The expected final answer, if known.
        meta: Whatever the source says beside; ``options`` and ``chance`` are used by metrics, ``mode`` by the chat template.
    """

    id: str
    task: str
    messages: tuple[Message, ...]
    answer: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """Text of the last user turn."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def media(self) -> tuple[ContentItem, ...]:
        """All images and videos in order."""
        return tuple(item for message in self.messages for item in message.content if item.kind in _MEDIA)


def parse_sample(record: Any, place: str, folder: Path) -> Sample:
    """Check one record of the ``messages`` convention and turn it into a sample.

    Args:
        record: The decoded JSON value.
        place: Where it comes from, for errors, such as ``train.jsonl:12``.
        folder: What relative media paths are relative to.

    Raises:
        BadData: With reason ``bad_line`` if the record breaks the schema.
    """

    def refuse(problem: str) -> BadData:
        return BadData("bad_line", f"{place}: {problem}")

    if not isinstance(record, dict):
        raise refuse(f"a sample is a JSON object, this is {type(record).__name__}")
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise refuse("half of a surrogate pair is no character: no tokenizer takes it") from error
    except RecursionError as error:
        raise refuse("objects and lists are nested too deeply") from error
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise refuse("'messages' must be a list with at least one turn")
    meta = record.get("meta", {})
    if not isinstance(meta, dict):
        raise refuse(f"'meta' must be an object, got {type(meta).__name__}")
    if len(messages) > 1 and any(isinstance(turn, dict) and turn.get("role") == _DOCUMENT for turn in messages):
        raise refuse("a document stands alone: it is no turn of a conversation")
    answer = record.get("answer")
    return Sample(
        id=str(record.get("id", place)),
        task=str(record.get("task", "unnamed")),
        messages=tuple(_message(message, refuse, folder) for message in messages),
        answer=None if answer is None else str(answer),
        meta=meta,
    )


def _message(message: Any, refuse: Any, folder: Path) -> Message:
    if not isinstance(message, dict) or message.get("role") not in (*_ROLES, _DOCUMENT):
        raise refuse(f"every turn needs a role, one of {', '.join(_ROLES)}; got {shown(message)}")
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise refuse(f"'content' must be text or a list of items, got {type(content).__name__}")
    parts = {name: message.get(name) for name in ("thought", "analysis")}
    for name, value in parts.items():
        if value is not None and (not isinstance(value, str) or message["role"] != "assistant"):
            raise refuse(f"{name!r} is a text of an assistant turn; got {shown(message)}")
    items = tuple(_item(item, refuse, folder, message["role"] == _DOCUMENT) for item in content)
    if any(item.kind != "text" for item in items) and any(value is not None for value in parts.values()):
        raise refuse("a turn with a thought or an analysis answers in text alone; it holds media")
    return Message(role=message["role"], content=items, **parts)


def _item(item: Any, refuse: Any, folder: Path, in_document: bool) -> ContentItem:
    kind = item.get("type") if isinstance(item, dict) else None
    if in_document and kind == "end":
        return ContentItem(kind="end")
    if kind not in _KINDS:
        raise refuse(f"every content item needs a type, one of {', '.join(_KINDS)}; got {shown(item)}")
    value = item.get(kind)
    options = {name: option for name, option in item.items() if name not in ("type", kind)}
    if kind == "video" and isinstance(value, list) and value and all(isinstance(frame, str) for frame in value):
        return ContentItem(kind=kind, path=tuple(located(frame, folder) for frame in value), options=options)
    if not isinstance(value, str):
        raise refuse(f"an item of type {kind!r} needs a string under {kind!r}; got {shown(item)}")
    if kind == "text":
        return ContentItem(kind="text", text=value, learnt=not in_document or item.get("learnt", True) is not False)
    return ContentItem(kind=kind, path=located(value, folder), options=options)


def shown(value: Any) -> str:
    """A value as errors show it, cut short."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
