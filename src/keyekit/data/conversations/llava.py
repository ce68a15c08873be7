"""LLaVA's format: ``conversations`` of ``human`` and ``gpt`` with ``<image>`` where the picture goes."""

from __future__ import annotations

from typing import Any

from keyekit.data.conversations.base import ConversationFormat, Fields, leading, no_media_left, split_markers

__all__ = ["Llava"]

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_FIELDS = {"image": "image", "video": "video"}


class Llava(ConversationFormat):
    """LLaVA's instruction data.

    ``image`` and ``video`` hold a path or a list of paths. Markers ``<image>`` and ``<video>`` in the turns take them in order;
    media of an entry without any marker stand before its first turn. Values are stripped, as LLaVA's own reader does.
    """

    def messages(self, fields: Fields) -> list[dict[str, Any]]:
        """See :class:`ConversationFormat`."""
        paths = {kind: fields.paths(name) for kind, name in _FIELDS.items()}
        media = {kind: iter(found) for kind, found in paths.items()}
        turns = []
        for turn in fields.objects("conversations"):
            speaker = turn.text("from")
            if speaker not in _ROLES:
                raise turn.refuse("from", f"one of {', '.join(_ROLES)} is wanted, got {speaker!r}")

            def refuse(problem: str, turn: Fields = turn) -> Exception:
                return turn.refuse("value", problem)

            content = split_markers(turn.text("value").strip(), media, refuse)
            turns.append({"role": _ROLES[speaker], "content": content})
        if not any(item["type"] != "text" for turn in turns for item in turn["content"]):
            first = next((turn for turn in turns if turn["role"] == "user"), turns[0])
            first["content"] = [item for kind in paths for item in leading(paths[kind], kind)] + first["content"]
        else:
            no_media_left(media, fields, _FIELDS)
        return turns
