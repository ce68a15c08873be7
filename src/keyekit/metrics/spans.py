"""Time spans in answers: reading them and comparing them."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["Span", "parse_span", "temporal_iou"]

Span = tuple[float, float]
"""``(start, end)`` in seconds."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")  # without a sign: the dash of "1.0-2.5" stands between two times


def parse_span(text: str) -> Span | None:
    """Read the one time span of an answer, such as ``"1.0 - 2.5"`` or ``"from 1 to 2.5 seconds"``.

    Args:
        text: The answer.

    Returns:
        The span in seconds, or ``None`` if the text does not hold exactly two numbers of which the second is larger.

    Example:
        >>> parse_span("1.0 - 2.5")
        (1.0, 2.5)
        >>> parse_span("2.5 - 1.0") is None
        True
    """
    numbers = [float(number) for number in _NUMBER.findall(text)]
    if len(numbers) != 2 or numbers[0] >= numbers[1]:
        return None
    return numbers[0], numbers[1]


def temporal_iou(first: Sequence[float] | None, second: Sequence[float] | None) -> float:
    """Intersection over union of two spans, 0 if either is missing or does not end after its start.

    Example:
        >>> temporal_iou((0.0, 2.0), (1.0, 4.0))
        0.25
    """
    if first is None or second is None or first[0] >= first[1] or second[0] >= second[1]:
        return 0.0
    shared = max(min(first[1], second[1]) - max(first[0], second[0]), 0.0)
    return shared / (first[1] - first[0] + second[1] - second[0] - shared)
