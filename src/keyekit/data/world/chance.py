"""What somebody who sees nothing can score: the best constant answer of a split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np

__all__ = ["constant_score"]

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def _overlap(spans: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """Length shared by each of ``[N, 2]`` spans and a guess."""
    return np.clip(np.minimum(spans[:, 1], guess[1]) - np.maximum(spans[:, 0], guess[0]), 0, None)


def _mean_span_iou(spans: np.ndarray, guess: np.ndarray) -> float:
    shared = _overlap(spans, guess)
    return float((shared / (spans[:, 1] - spans[:, 0] + guess[1] - guess[0] - shared)).mean())


def _mean_box_iou(boxes: np.ndarray, guess: np.ndarray) -> float:
    shared = _overlap(boxes[:, [0, 2]], guess[[0, 2]]) * _overlap(boxes[:, [1, 3]], guess[[1, 3]])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return float((shared / (area + (guess[2] - guess[0]) * (guess[3] - guess[1]) - shared)).mean())


def constant_score(task: str, answers: Sequence[str]) -> float:
    """Score of the best constant answer: mean intersection over union for spans and boxes, accuracy for the others.

    Args:
        task: Name of the task family.
        answers: The right answers of a split.

    Example:
        >>> constant_score("arithmetic", ["7", "7", "3", "5"])
        0.5
    """
    if not answers:
        return 0.0
    if task not in ("temporal", "box"):
        return Counter(answers).most_common(1)[0][1] / len(answers)
    values = np.array([[float(number) for number in _NUMBER.findall(answer)] for answer in answers])
    if task == "temporal":
        moments = np.unique(values)
        guesses = [np.array(pair) for pair in product(moments, moments) if pair[0] < pair[1]]
        return round(max(_mean_span_iou(values, guess) for guess in guesses), 4)
    middle = np.median(values, axis=0)
    center = np.array([(middle[0] + middle[2]) / 2, (middle[1] + middle[3]) / 2])
    sides = np.linspace(50, 800, 31)
    return round(
        max(_mean_box_iou(values, np.concatenate([center - side / 2, center + side / 2])) for side in sides), 4
    )
