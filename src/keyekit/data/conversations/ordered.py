"""Captions and questions about a picture in a chosen order (Keye-VL 8B sheet 4.5)."""

from __future__ import annotations

from typing import Any

from keyekit.data.conversations.base import ConversationFormat, Fields, leading
from keyekit.data.sample import shown

__all__ = ["Ordered"]

_PIECES = ("media", "caption", "end", "question", "answer")
CAPTION_FIRST = ("media", "caption", "end", "question", "answer")
"""Keye-VL 8B sheet 4.5: (image, caption, eos, question, answer)."""
ANSWER_FIRST = ("media", "question", "answer", "end", "caption")
"""Keye-VL 8B sheet 4.5: (image, question, answer, eos, caption)."""


class Ordered(ConversationFormat):
    """Pictures or clips with a ``caption`` (or ``text``) and questions, as one document without turns.

    Captions and answers are learnt, questions are not. The pieces stand in the given order; one that an entry does not hold is
    left out, with the end token beside it. ``question`` and ``answer`` may be lists of one length.

    Args:
        order: The pieces, ``media`` first: by default ``[media, caption, end, question, answer]``; the other order of the paper
            is ``[media, question, answer, end, caption]``. ``end`` is the end token, ``<|im_end|>``.
        separator: What stands between a question and its answer, and between two questions.

    Raises:
        ValueError: If a piece is unknown or repeated, or an answer does not follow its question.
    """

    def __init__(self, order: list[str] | None = None, separator: str = "\n") -> None:
        self.order = tuple(order or CAPTION_FIRST)
        self.separator = separator
        if set(self.order) - set(_PIECES) or len(set(self.order)) < len(self.order) or self.order[:1] != ("media",):
            raise ValueError(f"order={list(self.order)}: begin with media, then each of {', '.join(_PIECES[1:])} once")
        asked = "question" in self.order
        if asked != ("answer" in self.order) or (asked and "question,answer" not in ",".join(self.order)):
            raise ValueError(f"order={list(self.order)}: an answer stands right behind its question")

    def messages(self, fields: Fields) -> list[dict[str, Any]]:
        """See :class:`ConversationFormat`."""
        media = [item for kind in ("image", "video") for item in leading(fields.paths(kind, f"{kind}s"), kind)]
        if not media:
            raise fields.refuse("image", "a picture or a clip is wanted, there is neither image nor video")
        pieces = {"media": media, "caption": self._caption(fields), "question": self._questions(fields), "answer": []}
        if not pieces["caption"] and not pieces["question"]:
            raise fields.refuse("caption", "a caption, or a question and an answer, is wanted")
        content: list[dict[str, Any]] = []
        for place, piece in enumerate(self.order):
            if piece != "end":
                content += pieces[piece]
            elif self._between(pieces, place):
                content.append({"type": "end"})
        return [{"role": "document", "content": content}]

    def _between(self, pieces: dict[str, list[dict[str, Any]]], place: int) -> bool:
        """Whether there is text on both sides of an end token."""
        before, after = (
            any(pieces.get(piece) for piece in side if piece != "media")
            for side in (self.order[:place], self.order[place + 1 :])
        )
        return before and after

    @staticmethod
    def _caption(fields: Fields) -> list[dict[str, Any]]:
        name = "caption" if "caption" in fields.value else "text"
        text = fields.text(name, "").strip()
        return [{"type": "text", "text": text}] if text else []

    def _questions(self, fields: Fields) -> list[dict[str, Any]]:
        questions, answers = (_texts(fields, name) for name in ("question", "answer"))
        if len(questions) != len(answers):
            raise fields.refuse("answer", f"{len(questions)} questions, but {len(answers)} answers")
        items: list[dict[str, Any]] = []
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            before = self.separator if number else ""
            items.append({"type": "text", "text": before + question + self.separator, "learnt": False})
            items.append({"type": "text", "text": answer})
        return items


def _texts(fields: Fields, name: str) -> list[str]:
    value = fields.value.get(name)
    texts = value if isinstance(value, list) else [] if value is None else [value]
    for text in texts:
        if not isinstance(text, str):
            raise fields.refuse(name, f"text or a list of texts is wanted, got {shown(text)}")
    return texts
