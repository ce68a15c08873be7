"""The ``messages`` convention of Qwen-VL and keye-vl-utils."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keyekit.data.conversations.base import ConversationFormat, Fields
from keyekit.data.sample import Sample, parse_sample

__all__ = ["Messages"]


class Messages(ConversationFormat):
    """Turns with a ``role`` and a ``content`` of text or of items of type ``text``, ``image`` and ``video``.

    Options of media stand beside them, as in keye-vl-utils (``min_pixels``, ``fps``, ``nframes``, ``video_start`` and others).
    Chat-completion items (``image_url``, ``video_url``) are understood as well.
    """

    def messages(self, fields: Fields) -> list[dict[str, Any]]:
        """See :class:`ConversationFormat`."""
        turns = fields.value.get("messages")
        return [_plain_turn(turn) for turn in turns] if isinstance(turns, list) else []

    def parse(self, record: Any, place: str, folder: Path) -> Sample:
        """Check one entry and turn it into a sample.

        Raises:
            BadData: With reason ``bad_line`` if the entry breaks the convention; the message names place and field.
        """
        if isinstance(record, dict) and isinstance(record.get("messages"), list):
            record = {**record, "messages": [_plain_turn(turn) for turn in record["messages"]]}
        return parse_sample(record, place, folder)


def _plain_turn(turn: Any) -> Any:
    """The turn with chat-completion items as items of ours."""
    if not isinstance(turn, dict) or not isinstance(turn.get("content"), list):
        return turn
    return {**turn, "content": [_plain_item(item) for item in turn["content"]]}


def _plain_item(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    for kind in ("image", "video"):
        link = item.get(f"{kind}_url")
        if item.get("type") == f"{kind}_url" and isinstance(link, dict):
            return {"type": kind, kind: link.get("url")}
        if item.get("type") == kind and kind not in item and isinstance(link, str):
            return {"type": kind, kind: link}
    if "type" not in item:  # keye-vl-utils goes by the key alone
        kind = next((kind for kind in ("image", "video", "text") if kind in item), None)
        return item if kind is None else {"type": kind, **item}
    return item
