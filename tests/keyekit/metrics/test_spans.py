from __future__ import annotations

import pytest

from keyekit.metrics.spans import find_span, parse_span, temporal_iou


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
    ("text", "span"),
    [
        ("The event happens in 18.5 - 23.0 seconds.", (18.5, 23.0)),
        ("18.5-23", (18.5, 23.0)),
        ("18.5 to 23.0", (18.5, 23.0)),
        ("18.5 \N{EN DASH} 23", (18.5, 23.0)),
        ("First 1 - 2, then 5 - 9 seconds", (1.0, 2.0)),
        ("In frame 3 of 7 it runs from 18.5 to 23", (18.5, 23.0)),
        ("Starting time: 0.8 seconds. Ending time: 1.1 seconds", (0.8, 1.1)),
        ("between 00:59 and 01:02", (59.0, 62.0)),
        ("01:00:01.5 - 01:00:02", (3601.5, 3602.0)),
        ("9 - 3", (9.0, 3.0)),
        ("at 5 seconds", None),
        ("never", None),
        ("", None),
    ],
)
def test_the_first_span_of_a_sentence_is_found(text, span):
    assert find_span(text) == span


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
