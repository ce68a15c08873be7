"""Bounding boxes in answers: reading them and comparing them."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["Box", "box_iou", "parse_box"]

Box = tuple[float, float, float, float]
"""``(x1, y1, x2, y2)``: upper left and lower right corner, in any unit."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def parse_box(text: str) -> Box | None:
    """Read the one box of an answer.

    The usual form is ``<|box_start|>[[x1, y1, x2, y2]]<|box_end|>`` with integers from 0 to 999 (Keye-VL 8B sheet 4.5); what
    stands around the numbers does not matter.

    Args:
        text: The answer.

    Returns:
        The box, or ``None`` if the text does not hold exactly four numbers that make a box with an area.

    Example:
        >>> parse_box("<|box_start|>[[100, 200, 300, 400]]<|box_end|>")
        (100.0, 200.0, 300.0, 400.0)
        >>> parse_box("[[300, 200, 100, 400]]") is None
        True
    """
    numbers = [float(number) for number in _NUMBER.findall(text)]
    if len(numbers) != 4:
        return None
    left, top, right, bottom = numbers
    return (left, top, right, bottom) if left < right and top < bottom else None


def box_iou(first: Sequence[float] | None, second: Sequence[float] | None) -> float:
    """Intersection over union of two boxes, 0 if either is missing or has no area.

    Example:
        >>> box_iou((0, 0, 2, 2), (1, 0, 3, 2))
        0.3333333333333333
    """
    if first is None or second is None or not (_area(first) and _area(second)):
        return 0.0
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (_area(first) + _area(second) - shared)


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
