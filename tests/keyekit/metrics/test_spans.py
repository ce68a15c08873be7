from __future__ import annotations

import pytest

from keyekit.metrics.spans import parse_span, temporal_iou


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("1.0 - 2.5", (1.0, 2.5)),
        ("1.0-2.5", (1.0, 2.5)),
        ("1.0 \N{EN DASH} 2.5 seconds", (1.0, 2.5)),
        ("from 0 to 12", (0.0, 12.0)),
        ("2.5 - 1.0", None),
        ("1.0 - 1.0", None),
        ("1.0", None),
        ("1 2 3", None),
        ("never", None),
    ],
)
def test_only_one_whole_span_is_read(text, span):
    assert parse_span(text) == span


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 4), (0, 4), 1.0),
        ((0, 4), (2, 6), 2 / 6),
        ((0, 4), (1, 2), 1 / 4),
        ((0, 1), (1, 2), 0.0),
        ((0, 1), (3, 4), 0.0),
        ((2, 1), (0, 3), 0.0),
        (None, (0, 1), 0.0),
    ],
)
def test_overlap_of_spans(first, second, expected):
    assert temporal_iou(first, second) == pytest.approx(expected)
    assert temporal_iou(second, first) == pytest.approx(expected)
