"""Time spans in answers: reading them and comparing them."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["Span", "find_span", "parse_span", "temporal_iou"]

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


_CLOCK = re.compile(r"(?<![\d:.])(?:(\d{1,2}):)?(\d{1,2}):(\d{2}(?:\.\d+)?)(?![\d:])")
_RANGE = re.compile(r"(\d+(?:\.\d*)?)\s*(?:[-\N{EN DASH}\N{EM DASH}~]|\bto\b)\s*(\d+(?:\.\d*)?)")


def find_span(text: str) -> Span | None:
    """The first time span in a sentence, as TimeLens reads answers (Keye-VL-2.0 sheet 12).

    Two times on a clock (``1:05`` or ``01:02:03.5``), else two numbers with a dash or "to" between them, else the first two
    numbers.

    Args:
        text: The answer.

    Returns:
        The span in seconds, also if it ends before it begins; ``None`` if the text does not hold two times.

    Example:
        >>> find_span("The event happens in 3.5 - 8 seconds."), find_span("from 00:59 until 1:02")
        ((3.5, 8.0), (59.0, 62.0))
        >>> find_span("It starts at 2 s") is None
        True
    """
    clock = [
        3600 * int(hours or 0) + 60 * int(minutes) + float(seconds) for hours, minutes, seconds in _CLOCK.findall(text)
    ]
    if len(clock) >= 2:
        return clock[0], clock[1]
    found = _RANGE.search(text)
    numbers = list(found.groups()) if found else _NUMBER.findall(text)
    return (float(numbers[0]), float(numbers[1])) if len(numbers) >= 2 else None


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
