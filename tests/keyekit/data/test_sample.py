"""The schema of samples."""

from pathlib import Path

import pytest

from keyekit.data.errors import BadData
from keyekit.data.sample import parse_sample

USER = {"role": "user", "content": [{"type": "video", "video": "a.mp4", "fps": 1.0}, {"type": "text", "text": "what?"}]}


def test_a_conversation_is_parsed() -> None:
    record = {
        "id": 7,
        "task": "t",
        "messages": [USER, {"role": "assistant", "content": "yes"}],
        "answer": 3,
        "meta": {"k": 1},
    }
    sample = parse_sample(record, "f:1", Path("/data"))
    assert (sample.id, sample.task, sample.answer, sample.question) == ("7", "t", "3", "what?")
    assert sample.media[0].path == Path("/data/a.mp4")
    assert sample.media[0].options == {"fps": 1.0}
    assert sample.messages[1].text == "yes"


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ([1, 2], "JSON object, this is list"),
        ({}, "'messages' must be a list"),
        ({"messages": []}, "at least one turn"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "one of system, user, assistant"),
        ({"messages": [{"role": "user", "content": 5}]}, "text or a list of items"),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "one of text, image, video"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "needs a string under 'image'"),
        ({"messages": [USER], "meta": 3}, "'meta' must be an object"),
        ({"messages": [USER | {"thought": "x"}]}, "'thought' is a text of an assistant turn"),
        ({"messages": [{"role": "assistant", "content": "x", "analysis": 3}]}, "'analysis' is a text of an assistant"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "image", "image": "a"}], "thought": "x"}]},
            "answers in text alone",
        ),
    ],
)
def test_broken_records_name_the_place_and_the_problem(record, problem: str) -> None:
    with pytest.raises(BadData, match=problem) as caught:
        parse_sample(record, "train.jsonl:12", Path())
    assert "train.jsonl:12" in str(caught.value)
    assert caught.value.reason == "bad_line"


def test_assistant_turns_may_hold_a_thought_and_an_analysis() -> None:
    turn = {"role": "assistant", "content": "yes", "thought": "because", "analysis": "hard"}
    message = parse_sample({"messages": [USER, turn]}, "f:1", Path()).messages[1]
    assert (message.text, message.thought, message.analysis) == ("yes", "because", "hard")


def test_addresses_stay_as_they_are_and_lists_of_images_are_videos() -> None:
    content = [
        {"type": "image", "image": "https://example.org/a//b.png"},
        {"type": "video", "video": "s3://bucket/a.mp4"},
        {"type": "video", "video": ["f/1.png", "file:///data/2%20b.png"], "fps": 4.0},
    ]
    sample = parse_sample({"messages": [{"role": "user", "content": content}]}, "f:1", Path("/here"))
    assert [item.path for item in sample.media] == [
        "https://example.org/a//b.png",
        "s3://bucket/a.mp4",
        (Path("/here/f/1.png"), Path("/data/2 b.png")),
    ]
    assert sample.media[2].options == {"fps": 4.0}
    for wrong in ([], [1], {"a": 1}):
        with pytest.raises(BadData, match="a string under 'video'"):
            parse_sample(
                {"messages": [{"role": "user", "content": [{"type": "video", "video": wrong}]}]}, "f:1", Path()
            )
