"""ShareGPT's format with media in lists beside the conversation, as LLaMA-Factory and its relatives write it."""

from __future__ import annotations

from typing import Any

from keyekit.data.conversations.base import ConversationFormat, Fields, no_media_left, split_markers

__all__ = ["ShareGPT"]

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "system": "system",
}
_FIELDS = {"image": "images", "video": "videos"}


class ShareGPT(ConversationFormat):
    """ShareGPT conversations.

    Turns are ``{"from": …, "value": …}`` under ``conversations``, or ``{"role": …, "content": …}`` under ``messages``. A
    ``system`` field is a turn before them. Markers ``<image>`` and ``<video>`` take the paths in ``images`` and ``videos``
    in order, and there have to be as many of each. Turns of tools (``function_call``, ``observation``) are refused: they need
    a template of their own.
    """

    def messages(self, fields: Fields) -> list[dict[str, Any]]:
        """See :class:`ConversationFormat`."""
        media = {kind: iter(fields.paths(name)) for kind, name in _FIELDS.items()}
        name, who, what = ("conversations", "from", "value")
        if name not in fields.value and "messages" in fields.value:
            name, who, what = ("messages", "role", "content")
        turns = []
        system = fields.text("system", "")
        if system:
            turns.append({"role": "system", "content": system})
        for turn in fields.objects(name):
            speaker = turn.text(who)
            if speaker not in _ROLES:
                raise turn.refuse(who, f"one of {', '.join(_ROLES)} is wanted, got {speaker!r}")

            def refuse(problem: str, turn: Fields = turn) -> Exception:
                return turn.refuse(what, problem)

            turns.append({"role": _ROLES[speaker], "content": split_markers(turn.text(what), media, refuse)})
        no_media_left(media, fields, _FIELDS)
        return turns
