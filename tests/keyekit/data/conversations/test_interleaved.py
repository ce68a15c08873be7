"""Interleaved documents in three layouts, and what becomes of them."""

from pathlib import Path

import pytest

from keyekit.data.conversations.interleaved import Interleaved
from keyekit.data.errors import BadData


def parse(record, **settings):
    return Interleaved(**settings).parse(record, "doc.jsonl:5", Path("/data"))


def content(sample) -> list[str]:
    (message,) = sample.messages
    assert message.role == "document"
    return [item.path.name if item.path else item.text for item in message.content]


def test_the_three_layouts() -> None:
    marked = {"text": "Take two eggs.\n<image>\nBeat them.<video>", "images": ["eggs.jpg"], "videos": ["beat.mp4"]}
    assert content(parse(marked)) == ["Take two eggs.", "eggs.jpg", "Beat them.", "beat.mp4"]
    obelics = {"texts": ["Take two eggs.", None, "Beat them.", "Done."], "images": [None, "eggs.jpg", None, None]}
    assert content(parse(obelics)) == ["Take two eggs.", "eggs.jpg", "Beat them.\n\nDone."]
    mmc4 = {
        "text_list": ["Take two eggs.", "Beat them.", "Done."],
        "image_info": [
            {"image_name": "b.jpg", "matched_text_index": 1, "matched_sim": 0.3},
            {"image_name": "a.jpg", "matched_text_index": 0},
        ],
    }
    assert content(parse(mmc4, separator=" ")) == ["a.jpg", "Take two eggs.", "b.jpg", "Beat them. Done."]


def test_clips_between_texts() -> None:
    record = {"texts": ["Hi.", None, None], "images": [None, None, "a.png"], "videos": [None, "a.mp4", None]}
    assert content(parse(record)) == ["Hi.", "a.mp4", "a.png"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "text: text is wanted"),
        ({"text": "x", "images": ["a.png"]}, "images: 1 more"),
        ({"text": "<image>"}, "text: there are more <image> markers"),
        ({"texts": ["a"], "images": [None, None]}, "texts: lists of one length"),
        ({"texts": ["a"], "images": ["a.png"]}, r"texts\[0\]: one of text, image"),
        ({"texts": [3], "images": [None]}, r"texts\[0\]: text or null"),
        (
            {"text_list": ["a"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]},
            r"image_info\[0\]\.matched",
        ),
        (
            {"text_list": ["a"], "image_info": [{"matched_text_index": 0}]},
            r"image_info\[0\]\.image_name: text is wanted",
        ),
    ],
)
def test_errors_name_place_and_field(record, message: str) -> None:
    with pytest.raises(BadData, match=r"doc\.jsonl:5: " + message):
        parse(record)
