"""ShareGPT conversations with media beside them."""

from pathlib import Path

import pytest

from keyekit.data.conversations.sharegpt import ShareGPT
from keyekit.data.errors import BadData


def parse(record):
    return ShareGPT().parse(record, "sg.jsonl:1", Path("/data"))


def content(sample) -> list[tuple[str, list[str]]]:
    return [(m.role, [i.path.name if i.path else i.text for i in m.content]) for m in sample.messages]


def test_both_spellings_of_turns_say_the_same() -> None:
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "<image>Who are they?"},
            {"from": "gpt", "value": "Kane and Gretzka."},
            {"from": "human", "value": "<video>And here?"},
            {"from": "gpt", "value": "Nobody."},
        ],
        "system": "You know football.",
        "images": ["1.jpg"],
        "videos": ["1.mp4"],
    }
    openai = {
        "messages": [
            {"role": "system", "content": "You know football."},
            *(
                {"role": {"human": "user", "gpt": "assistant"}[turn["from"]], "content": turn["value"]}
                for turn in sharegpt["conversations"]
            ),
        ],
        "images": ["1.jpg"],
        "videos": ["1.mp4"],
    }
    expected = [
        ("system", ["You know football."]),
        ("user", ["1.jpg", "Who are they?"]),
        ("assistant", ["Kane and Gretzka."]),
        ("user", ["1.mp4", "And here?"]),
        ("assistant", ["Nobody."]),
    ]
    assert content(parse(sharegpt)) == content(parse(openai)) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": []}, "conversations: a list with at least one entry"),
        ({"conversations": [{"from": "observation", "value": "3"}]}, r"conversations\[0\]\.from: one of human"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, r"messages\[0\]\.content: text is wanted"),
        (
            {"conversations": [{"from": "human", "value": "<video>"}]},
            r"conversations\[0\]\.value: there are more <video>",
        ),
        ({"conversations": [{"from": "human", "value": "x"}], "images": ["a.png"]}, "images: 1 more than there are"),
        ({"conversations": [{"from": "human", "value": "x"}], "system": 3}, "system: text is wanted"),
    ],
)
def test_errors_name_place_and_field(record, message: str) -> None:
    with pytest.raises(BadData, match=r"sg\.jsonl:1: " + message):
        parse(record)
