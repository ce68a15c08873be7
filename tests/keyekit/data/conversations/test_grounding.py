"""Annotations that become questions and answers."""

from pathlib import Path

import pytest

from keyekit.data.conversations.grounding import Grounding
from keyekit.data.errors import BadData


def parse(record, **settings):
    return Grounding(**settings).parse(record, "g.jsonl:4", Path("/data"))


def answer(record, **settings) -> str:
    return parse(record, **settings).messages[-1].text


def test_objects_in_pixels_and_in_shares() -> None:
    objects = [{"ref": "dog", "boxes": [[32, 24, 64, 48], [0, 0, 320, 240]]}, {"ocr": "STOP", "points": [[160, 120]]}]
    record = {"image": "a.png", "question": "Where?", "size": [320, 240], "objects": objects}
    assert answer(record) == (
        "<|object_ref_start|>dog<|object_ref_end|><|box_start|>[[100, 100, 200, 200], [0, 0, 999, 999]]<|box_end|>\n"
        "<|ocr_text_start|>STOP<|ocr_text_end|><|point_start|>[[500, 500]]<|point_end|>"
    )
    shares = {"image": "a.png", "question": "Where?", "objects": [{"polygons": [[[0, 0], [0.5, 0], [0.5, 0.25]]]}]}
    assert answer(shares, polygon_tokens="quad") == "<|quad_start|>[[[0, 0], [500, 0], [500, 250]]]<|quad_end|>"
    sample = parse(record)
    assert sample.question == "Where?"
    assert sample.media[0].path == Path("/data/a.png")


def test_events_and_clue_intervals() -> None:
    events = [{"start": 0, "end": 1.25, "caption": "It sits."}, {"start": 1.25, "end": 9, "caption": "It runs."}]
    assert answer({"video": "a.mp4", "question": "When?", "events": events}) == (
        "<|clip_time_start|>[0.0, 1.2]<|clip_time_end|>It sits.\n<|clip_time_start|>[1.2, 9.0]<|clip_time_end|>It runs."
    )
    clues = {
        "video": "a.mp4",
        "question": "Who?",
        "answer": "B",
        "clues": [[30, 42.5], [3, 4]],
        "thought": "At 3 s it could be.",
    }
    sample = parse(clues)
    assert sample.messages[-1].text == "B\n[[3, 4], [30, 42.5]]"
    assert sample.messages[-1].thought == "At 3 s it could be."
    assert sample.answer == "B"


BASE = {"image": "a.png", "question": "Where?"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "x"}, "image: a picture or a clip"),
        ({"image": "a.png", "objects": [{"boxes": [[0, 0, 1, 1]]}]}, "question: text is wanted"),
        (BASE, "objects: one of objects, events and clues"),
        ({**BASE, "objects": []}, "objects: a list with at least one"),
        ({**BASE, "objects": [{"ref": "x"}]}, r"objects\[0\]\.boxes: one of points, boxes, polygons"),
        ({**BASE, "objects": [{"boxes": [[0, 0, 1]]}]}, r"objects\[0\]\.boxes: a list of 4 numbers"),
        ({**BASE, "objects": [{"boxes": [[0, 0, 1, 2]]}]}, r"objects\[0\]\.boxes: 2 is not between 0 and 1"),
        ({**BASE, "objects": [{"polygons": [[[0, 0]]]}]}, r"objects\[0\]\.polygons: a polygon has three corners"),
        ({**BASE, "objects": [{"points": [[0, True]]}]}, r"objects\[0\]\.points: a list of 2 numbers"),
        ({**BASE, "size": [0, 1], "objects": [{"points": [[0, 0]]}]}, "size: "),
        ({**BASE, "events": [{"start": 2}]}, r"events\[0\]\.start: start and end"),
        ({**BASE, "events": [{"start": 2, "end": 1}]}, r"events\[0\]\.start: a time span"),
        ({**BASE, "answer": "x", "clues": [[1]]}, "clues: a list of 2 numbers"),
        ({**BASE, "clues": [[1, 2]]}, "answer: text is wanted"),
    ],
)
def test_errors_name_place_and_field(record, message: str) -> None:
    with pytest.raises(BadData, match=r"g\.jsonl:4: " + message):
        parse(record)
