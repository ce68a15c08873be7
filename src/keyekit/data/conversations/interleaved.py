"""Documents in which texts, pictures and clips follow each other, as web pages and transcripts do."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from keyekit.data.conversations.base import ConversationFormat, Fields, no_media_left, split_markers
from keyekit.data.sample import shown

__all__ = ["Interleaved"]

_FIELDS = {"image": "images", "video": "videos"}


class Interleaved(ConversationFormat):
    """Interleaved documents (Keye-VL 8B sheet 4.5): no turns, all text is learnt, an end-of-text token closes the document.

    Three layouts are understood, by their fields:

    - ``text`` with markers ``<image>`` and ``<video>``, which take the paths in ``images`` and ``videos`` in order;
    - ``texts`` beside ``images`` (and ``videos``), lists of one length in which each place holds one of them and the others are
      null, as OBELICS is published;
    - ``text_list`` with ``image_info``, whose ``matched_text_index`` says before which text an image stands, as MMC4 is.

    Args:
        separator: What stands between two texts of a list.
    """

    def __init__(self, separator: str = "\n\n") -> None:
        self.separator = separator

    def messages(self, fields: Fields) -> list[dict[str, Any]]:
        """See :class:`ConversationFormat`."""
        if "text_list" in fields.value:
            content = self._matched(fields)
        elif "texts" in fields.value:
            content = self._parallel(fields)
        else:
            media = {kind: iter(fields.paths(name)) for kind, name in _FIELDS.items()}
            content = split_markers(fields.text("text"), media, lambda problem: fields.refuse("text", problem))
            no_media_left(media, fields, _FIELDS)
        return [{"role": "document", "content": content}]

    def _parallel(self, fields: Fields) -> list[dict[str, Any]]:
        columns = {"text": _column(fields, "texts")}
        columns |= {kind: _column(fields, name) for kind, name in _FIELDS.items() if name in fields.value}
        lengths = {len(column) for column in columns.values()}
        if len(lengths) > 1:
            raise fields.refuse("texts", f"lists of one length are wanted, these have {sorted(lengths)}")
        items: list[dict[str, Any]] = []
        for place in range(len(columns["text"])):
            there = [kind for kind, column in columns.items() if column[place] is not None]
            if len(there) > 1:
                raise fields.refuse(f"texts[{place}]", f"one of {', '.join(columns)} is wanted, there are {there}")
            for kind in there:
                self._append(items, kind, columns[kind][place])
        return items

    def _matched(self, fields: Fields) -> list[dict[str, Any]]:
        texts = _column(fields, "text_list")
        images: dict[int, list[str]] = defaultdict(list)
        for image in fields.objects("image_info") if fields.value.get("image_info") else ():
            place = image.value.get("matched_text_index")
            if not isinstance(place, int) or not 0 <= place < len(texts):
                raise image.refuse("matched_text_index", f"a number below {len(texts)} is wanted, got {shown(place)}")
            images[place].append(image.text("image_name"))
        items: list[dict[str, Any]] = []
        for place, text in enumerate(texts):
            for path in images[place]:
                self._append(items, "image", path)
            self._append(items, "text", text)
        return items

    def _append(self, items: list[dict[str, Any]], kind: str, value: str | None) -> None:
        if value is None:
            return
        if kind == "text" and items and items[-1]["type"] == "text":
            items[-1]["text"] += self.separator + value
        else:
            items.append({"type": kind, kind: value})


def _column(fields: Fields, name: str) -> list[str | None]:
    value = fields.value.get(name)
    if not isinstance(value, list):
        raise fields.refuse(name, f"a list is wanted, got {shown(value)}")
    for place, entry in enumerate(value):
        if entry is not None and not isinstance(entry, str):
            raise fields.refuse(f"{name}[{place}]", f"text or null is wanted, got {shown(entry)}")
    return value
