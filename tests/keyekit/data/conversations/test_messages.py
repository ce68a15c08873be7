"""The messages convention, as keye-vl-utils and chat-completion clients write it."""

from pathlib import Path

import pytest

from keyekit.data.conversations.messages import Messages
from keyekit.data.errors import BadData

FOLDER = Path("/data")


def parse(record):
    return Messages().parse(record, "a.jsonl:7", FOLDER)


def test_the_examples_of_keye_vl_utils() -> None:
    turns = [
        {
            "role": "user",
            "content": [
                {
                    "type": "image",
                    "image": "file:///path/to/your/image.jpg",
                    "resized_height": 280,
                    "resized_width": 420,
                },
                {"type": "video", "video": "clips/a.mp4", "fps": 2.0, "max_pixels": 50176, "video_start": 1.0},
                {"type": "text", "text": "Describe this."},
            ],
        },
        {"role": "assistant", "content": "A dog."},
    ]
    sample = parse({"messages": turns, "task": "caption"})
    assert sample.id == "a.jsonl:7"
    image, video = sample.media
    assert image.path == Path("/path/to/your/image.jpg")
    assert image.options == {"resized_height": 280, "resized_width": 420}
    assert video.path == FOLDER / "clips/a.mp4"
    assert video.options == {"fps": 2.0, "max_pixels": 50176, "video_start": 1.0}
    assert sample.question == "Describe this."


def test_items_without_type_and_chat_completion_items() -> None:
    content = [
        {"image": "a.png", "min_pixels": 784},
        {"type": "image_url", "image_url": {"url": "b.png", "detail": "high"}},
        {"type": "video_url", "video_url": {"url": "c.mp4"}},
        {"text": "Which?"},
    ]
    sample = parse({"messages": [{"role": "user", "content": content}]})
    assert [(item.kind, item.path.name) for item in sample.media] == [
        ("image", "a.png"), ("image", "b.png"), ("video", "c.mp4"),
    ]  # fmt: skip
    assert sample.media[0].options == {"min_pixels": 784}
    assert sample.question == "Which?"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([1], "a sample is a JSON object"),
        ({"messages": "hello"}, "'messages' must be a list"),
        ({"messages": [{"role": "judge", "content": "x"}]}, "one of system, user, assistant, tool"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]},
            "one of text, image, video",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image", "image": 3}]}]}, "a string under 'image'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "a string under 'image'",
        ),
    ],
)
def test_errors_name_place_and_field(record, message: str) -> None:
    with pytest.raises(BadData, match=f"a.jsonl:7: .*{message}"):
        parse(record)
