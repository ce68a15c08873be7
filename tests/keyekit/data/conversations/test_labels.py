"""Labels of places and times."""

import pytest

from keyekit.data.conversations.labels import (
    boxes_label,
    clip_time_label,
    intervals_label,
    points_label,
    polygons_label,
    scaled,
)
from keyekit.metrics.boxes import parse_box


def test_a_box_is_read_back_to_a_thousandth() -> None:
    size, box = (640, 427), (13.5, 400.0, 639.9, 427.0)
    read = parse_box(boxes_label([scaled(box, size)]))
    assert read is not None
    for number, original, limit in zip(read, box, (*size, *size), strict=True):
        assert abs(number / 1000 - original / limit) <= 1.001e-3
    assert max(read) == 999


def test_polygons_are_clockwise_to_the_eye_whichever_way_they_came() -> None:
    square = [(1, 1), (9, 1), (9, 9), (1, 9)]  # right along the top, then down: clockwise where y points down
    assert polygons_label([square]) == "<|polygon_start|>[[[1, 1], [9, 1], [9, 9], [1, 9]]]<|polygon_end|>"
    assert polygons_label([square[::-1]], "quad") == "<|quad_start|>[[[1, 1], [9, 1], [9, 9], [1, 9]]]<|quad_end|>"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda: scaled([1, 2, 3], (10, 10)), "come in pairs"),
        (lambda: scaled([11, 2], (10, 10)), "not between 0 and 10"),
        (lambda: scaled([float("nan"), 2], (10, 10)), "not between"),
        (lambda: boxes_label([(9, 0, 0, 9)]), "upper left"),
        (lambda: boxes_label([(0, 0, 9)]), "4 integers"),
        (lambda: points_label([(0, 1000)]), "2 integers from 0 to 999"),
        (lambda: points_label([]), "at least one"),
        (lambda: polygons_label([[(0, 0), (1, 1)]]), "three corners"),
        (lambda: clip_time_label(2, 1), "0 <= start <= end"),
        (lambda: intervals_label([]), "at least one interval"),
        (lambda: intervals_label([(0, float("inf"))]), "0 <= start <= end"),
    ],
)
def test_impossible_places_and_times_are_refused(write, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write()
