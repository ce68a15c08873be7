"""Labels of places and times as the model writes them (Keye-VL 8B sheet 4.5; clue intervals: Keye-VL-2.0 sheet 7.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

__all__ = [
    "COORDINATES",
    "boxes_label",
    "clip_time_label",
    "intervals_label",
    "named_label",
    "points_label",
    "polygons_label",
    "scaled",
]

COORDINATES = 1000
"""Keye-VL 8B sheet 4.5: coordinates are integers in [0, 1000), normalised per image."""

PolygonTokens = Literal["polygon", "quad"]
"""The paper writes ``polygon``; the released tokenizer has ``quad`` alone (Keye-VL 8B sheet 1.8, an open conflict)."""


def scaled(numbers: Sequence[float], size: tuple[float, float]) -> list[int]:
    """Coordinates ``x, y, x, y, …`` as integers from 0 to 999.

    Args:
        numbers: Coordinates in pixels.
        size: Width and height of the image in pixels; ``(1, 1)`` for coordinates that are shares of it.

    Raises:
        ValueError: If a number has no partner, is not finite or lies outside of the image.

    Example:
        >>> scaled([0, 10, 50, 20], (100, 20))
        [0, 500, 500, 999]
    """
    if len(numbers) % 2:
        raise ValueError(f"coordinates come in pairs, got {len(numbers)} numbers")
    found = []
    for place, number in enumerate(numbers):
        limit = size[place % 2]
        if not math.isfinite(number) or not 0 <= number <= limit:
            raise ValueError(f"{number} is not between 0 and {limit}")
        found.append(min(COORDINATES - 1, int(number * COORDINATES / limit)))
    return found


def points_label(points: Sequence[Sequence[int]]) -> str:
    """Points.

    Args:
        points: ``(x, y)`` from 0 to 999.

    Example:
        >>> points_label([(10, 20), (30, 40)])
        '<|point_start|>[[10, 20], [30, 40]]<|point_end|>'
    """
    return f"<|point_start|>{_checked(points, 2)}<|point_end|>"


def boxes_label(boxes: Sequence[Sequence[int]]) -> str:
    """Boxes.

    Args:
        boxes: ``(x1, y1, x2, y2)`` from 0 to 999, upper left and lower right corner.

    Raises:
        ValueError: If a box has its corners the wrong way round.

    Example:
        >>> boxes_label([(10, 20, 30, 40)])
        '<|box_start|>[[10, 20, 30, 40]]<|box_end|>'
    """
    text = _checked(boxes, 4)
    for x1, y1, x2, y2 in boxes:
        if x1 > x2 or y1 > y2:
            raise ValueError(f"the box {[x1, y1, x2, y2]} is not upper left, then lower right corner")
    return f"<|box_start|>{text}<|box_end|>"


def polygons_label(polygons: Sequence[Sequence[Sequence[int]]], tokens: PolygonTokens = "polygon") -> str:
    """Polygons, each written clockwise as it is seen; one given the other way round is turned.

    Args:
        polygons: Corners ``(x, y)`` from 0 to 999 of each.
        tokens: By which tokens they are enclosed.

    Raises:
        ValueError: If a polygon has fewer than three corners.

    Example:
        >>> polygons_label([[(0, 0), (0, 9), (9, 9)]])
        '<|polygon_start|>[[[9, 9], [0, 9], [0, 0]]]<|polygon_end|>'
    """
    turned = []
    for polygon in polygons:
        _checked(polygon, 2)
        if len(polygon) < 3:
            raise ValueError(f"a polygon has three corners at least, got {list(polygon)}")
        following = [*polygon[1:], polygon[0]]
        area = sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(polygon, following, strict=True))
        # The vertical axis points down, so a positive area is clockwise to the eye.
        turned.append([list(corner) for corner in (polygon if area >= 0 else reversed(polygon))])
    return f"<|{tokens}_start|>{turned}<|{tokens}_end|>"


def named_label(label: str, name: str, kind: Literal["object", "text"] = "object") -> str:
    """A label behind what it belongs to.

    Args:
        label: The label.
        name: Name of an object, or text that is written in the image.
        kind: Which of the two.

    Example:
        >>> named_label("<|box_start|>[[0, 0, 9, 9]]<|box_end|>", "dog")
        '<|object_ref_start|>dog<|object_ref_end|><|box_start|>[[0, 0, 9, 9]]<|box_end|>'
    """
    token = "object_ref" if kind == "object" else "ocr_text"
    return f"<|{token}_start|>{name}<|{token}_end|>{label}"


def clip_time_label(start: float, end: float, caption: str = "") -> str:
    """When something happens, in seconds with one decimal like the times of frames, and what it is.

    Raises:
        ValueError: If the end comes before the start.

    Example:
        >>> clip_time_label(1.5, 4, "A dog jumps.")
        '<|clip_time_start|>[1.5, 4.0]<|clip_time_end|>A dog jumps.'
    """
    first, last = _span((start, end))
    return f"<|clip_time_start|>[{first:.1f}, {last:.1f}]<|clip_time_end|>{caption}"


def intervals_label(intervals: Sequence[Sequence[float]]) -> str:
    """Intervals of a video that hold the clue to an answer, as one list, in order.

    The sheet has ``[[mm, mm], …]`` without a unit: these are seconds, whole where they are whole.

    Raises:
        ValueError: If there is none, or an end comes before its start.

    Example:
        >>> intervals_label([(12, 20), (3.5, 7)])
        '[[3.5, 7], [12, 20]]'
    """
    if not intervals:
        raise ValueError("at least one interval is wanted")
    return "[" + ", ".join(f"[{start:g}, {end:g}]" for start, end in sorted(map(_span, intervals))) + "]"


def _span(interval: Sequence[float]) -> tuple[float, float]:
    start, end = interval
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start <= end):
        raise ValueError(f"a time span is 0 <= start <= end in seconds, got {start} and {end}")
    return start, end


def _checked(groups: Sequence[Sequence[int]], length: int) -> str:
    if not groups:
        raise ValueError("at least one place is wanted")
    for group in groups:
        if len(group) != length or any(not 0 <= number < COORDINATES for number in group):
            raise ValueError(f"{length} integers from 0 to {COORDINATES - 1} are wanted, got {list(group)}")
    return str([list(group) for group in groups])
