"""Where and when: annotations of places in images and of times in videos become questions and answers."""

from __future__ import annotations

from typing import Any

from keyekit.data.conversations.base import ConversationFormat, Fields, leading
from keyekit.data.conversations.labels import (
    PolygonTokens,
    boxes_label,
    clip_time_label,
    intervals_label,
    named_label,
    points_label,
    polygons_label,
    scaled,
)
from keyekit.data.sample import shown

__all__ = ["Grounding"]

_SHAPES = ("points", "boxes", "polygons")


class Grounding(ConversationFormat):
    """Annotations with a question, whose answer is written in the label forms of Keye-VL (8B sheet 4.5).

    An entry has ``image`` or ``video``, ``question``, and one of

    - ``objects``: ``[{"ref": "dog", "boxes": [[x1, y1, x2, y2]]}, …]``, with ``points``, ``boxes`` or ``polygons``; ``ref``
      names an object, ``ocr`` a text in the image, and either may be left out. Coordinates are pixels of
      ``size: [width, height]``, or shares of the image where there is no size;
    - ``events``: ``[{"start": 1.5, "end": 4.0, "caption": "…"}, …]`` in seconds;
    - ``answer`` with ``clues``: ``[[start, end], …]`` in seconds, the intervals that show it, and perhaps ``thought``.

    Args:
        polygon_tokens: How polygons are enclosed; see :data:`~keyekit.data.conversations.labels.PolygonTokens`.
        separator: What stands between two objects or events, and before clue intervals.
    """

    def __init__(self, polygon_tokens: PolygonTokens = "polygon", separator: str = "\n") -> None:
        self.polygon_tokens: PolygonTokens = polygon_tokens
        self.separator = separator

    def messages(self, fields: Fields) -> list[dict[str, Any]]:
        """See :class:`ConversationFormat`."""
        media = [item for kind in ("image", "video") for item in leading(fields.paths(kind), kind)]
        if not media:
            raise fields.refuse("image", "a picture or a clip is wanted, there is neither image nor video")
        answer: dict[str, Any] = {"role": "assistant", "content": self._answer(fields)}
        if "thought" in fields.value:
            answer["thought"] = fields.text("thought")
        return [{"role": "user", "content": [*media, {"type": "text", "text": fields.text("question")}]}, answer]

    def _answer(self, fields: Fields) -> str:
        if "objects" in fields.value:
            size = self._size(fields)
            return self.separator.join(self._object(entry, size) for entry in fields.objects("objects"))
        if "events" in fields.value:
            return self.separator.join(self._event(entry) for entry in fields.objects("events"))
        if "clues" in fields.value:
            clues = _numbers(fields, "clues", 2)
            return fields.text("answer") + self.separator + _made(fields, "clues", intervals_label, clues)
        raise fields.refuse("objects", "one of objects, events and clues is wanted, there is none")

    @staticmethod
    def _size(fields: Fields) -> tuple[float, float]:
        size = fields.value.get("size", (1, 1))
        if not _are_numbers(size) or len(size) != 2 or min(size) <= 0:
            raise fields.refuse("size", f"[width, height] in pixels is wanted, got {shown(size)}")
        return size[0], size[1]

    def _object(self, fields: Fields, size: tuple[float, float]) -> str:
        shapes = [shape for shape in _SHAPES if shape in fields.value]
        if len(shapes) != 1:
            raise fields.refuse("boxes", f"one of {', '.join(_SHAPES)} is wanted, there are {shapes or 'none'}")
        label = self._label(fields, shapes[0], size)
        for name, kind in (("ref", "object"), ("ocr", "text")):
            if name in fields.value:
                return named_label(label, fields.text(name), kind)  # pyright: ignore[reportArgumentType]
        return label

    def _label(self, fields: Fields, shape: str, size: tuple[float, float]) -> str:
        if shape != "polygons":
            width, write = (4, boxes_label) if shape == "boxes" else (2, points_label)
            groups = _numbers(fields, shape, width)
            return _made(fields, shape, lambda: write([scaled(group, size) for group in groups]))
        outlines = fields.value[shape]
        if not isinstance(outlines, list):
            raise fields.refuse(shape, f"a list of polygons is wanted, got {shown(outlines)}")
        polygons = [_numbers(Fields({shape: outline}, fields.place, fields.path), shape, 2) for outline in outlines]
        return _made(
            fields,
            shape,
            lambda: polygons_label([[scaled(c, size) for c in polygon] for polygon in polygons], self.polygon_tokens),
        )

    @staticmethod
    def _event(fields: Fields) -> str:
        start, end = fields.value.get("start"), fields.value.get("end")
        if not _are_numbers([start, end]):
            raise fields.refuse("start", f"start and end in seconds are wanted, got {shown((start, end))}")
        return _made(fields, "start", clip_time_label, start, end, fields.text("caption", ""))


def _numbers(fields: Fields, name: str, width: int) -> list[list[float]]:
    groups = fields.value.get(name)
    if not isinstance(groups, list) or not all(_are_numbers(group) and len(group) == width for group in groups):
        raise fields.refuse(name, f"a list of {width} numbers each is wanted, got {shown(groups)}")
    return groups


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )


def _made(fields: Fields, name: str, write: Any, *values: Any) -> str:
    """A label, with what it cannot be as an error of the field."""
    try:
        return write(*values)
    except ValueError as error:
        raise fields.refuse(name, str(error)) from error
