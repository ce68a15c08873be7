"""LLaVA's instruction data."""

from pathlib import Path

import pytest

from keyekit.data.conversations.llava import Llava
from keyekit.data.errors import BadData


def parse(record):
    return Llava().parse(record, "llava.json[3]", Path("/data"))


def kinds(sample) -> list[list[str]]:
    return [[item.path.name if item.path else item.text for item in message.content] for message in sample.messages]


def test_an_entry_as_it_is_published() -> None:
    record = {
        "id": "000000033471",
        "image": "000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
            {"from": "gpt", "value": "The bus in the image is white and red."},
            {"from": "human", "value": "What feature can be seen on the back of the bus?"},
            {"from": "gpt", "value": "The back of the bus features an advertisement.\n"},
        ],
    }
    sample = parse(record)
    assert sample.id == "000000033471"
    assert [message.role for message in sample.messages] == ["user", "assistant"] * 2
    assert sample.media[0].path == Path("/data/000000033471.jpg")
    assert kinds(sample) == [
        ["000000033471.jpg", "What are the colors of the bus in the image?"],
        ["The bus in the image is white and red."],
        ["What feature can be seen on the back of the bus?"],
        ["The back of the bus features an advertisement."],
    ]


def test_several_media_go_where_their_markers_are() -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Compare <image> and <image>\nwith <video>"},
        {"from": "gpt", "value": "ok"},
        {"from": "human", "value": "And\n<image>"},
        {"from": "gpt", "value": "ok"},
    ]
    sample = parse({"image": ["a.png", "b.png", "c.png"], "video": "d.mp4", "conversations": turns})
    assert kinds(sample)[1] == ["Compare ", "a.png", " and ", "b.png", "with ", "d.mp4"]
    assert kinds(sample)[3] == ["And", "c.png"]


def test_media_without_any_marker_stand_first() -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]
    assert kinds(parse({"image": "a.png", "conversations": turns}))[0] == ["a.png", "What?"]
    assert kinds(parse({"conversations": turns}))[0] == ["What?"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("x", "the entry: a JSON object"),
        ({}, "conversations: a list"),
        ({"conversations": [3]}, r"conversations\[0\]: a JSON object"),
        ({"conversations": [{"value": "x"}]}, r"conversations\[0\]\.from: text is wanted"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, r"conversations\[0\]\.from: one of human, gpt, system"),
        ({"conversations": [{"from": "human", "value": None}]}, r"conversations\[0\]\.value: text is wanted"),
        ({"image": {"a": 1}, "conversations": [{"from": "human", "value": "x"}]}, "image: a path or a list"),
        (
            {"image": "a.png", "conversations": [{"from": "human", "value": "<image> <image>"}]},
            r"conversations\[0\]\.value: there are more <image> markers than images",
        ),
        (
            {"image": ["a.png", "b.png"], "conversations": [{"from": "human", "value": "<image>"}]},
            "image: 1 more than there are <image> markers",
        ),
    ],
)
def test_errors_name_place_and_field(record, message: str) -> None:
    with pytest.raises(BadData, match=r"llava\.json\[3\]: " + message):
        parse(record)
