"""Ordering formats."""

from pathlib import Path

import pytest

from keyekit.data.conversations.ordered import ANSWER_FIRST, Ordered
from keyekit.data.errors import BadData


def content(record, **settings) -> list[str]:
    (message,) = Ordered(**settings).parse(record, "o.jsonl:2", Path("/data")).messages
    assert message.role == "document"
    return [i.path.name if i.path else "END" if i.kind == "end" else i.text + "*" * i.learnt for i in message.content]


RECORD = {"image": "a.png", "caption": "A red bus.", "question": "Which colour?", "answer": "Red."}


def test_the_two_orders_of_the_paper() -> None:
    assert content(RECORD) == ["a.png", "A red bus.*", "END", "Which colour?\n", "Red.*"]
    assert content(RECORD, order=list(ANSWER_FIRST)) == ["a.png", "Which colour?\n", "Red.*", "END", "A red bus.*"]


def test_what_is_not_there_is_left_out_with_the_end_beside_it() -> None:
    assert content({"video": "a.mp4", "text": "A bus."}) == ["a.mp4", "A bus.*"]
    assert content({"image": "a.png", "question": "Q?", "answer": "A."}) == ["a.png", "Q?\n", "A.*"]
    assert content({"images": ["a.png", "b.png"], "caption": "Two."}, order=list(ANSWER_FIRST)) == [
        "a.png",
        "b.png",
        "Two.*",
    ]


def test_several_questions_about_one_picture() -> None:
    record = {"image": "a.png", "question": ["Q1?", "Q2?"], "answer": ["A1", "A2"]}
    assert content(record, separator=" ") == ["a.png", "Q1? ", "A1*", " Q2? ", "A2*"]
    assert Ordered().parse(record, "o:1", Path("/")).answer is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"caption": "x"}, "image: a picture or a clip"),
        ({"image": "a.png"}, "caption: a caption, or"),
        ({"image": "a.png", "question": "x"}, "answer: 1 questions, but 0 answers"),
        ({"image": "a.png", "question": [1], "answer": "x"}, "question: text or a list"),
        ({"image": "a.png", "caption": 1}, "caption: text is wanted"),
    ],
)
def test_errors_name_place_and_field(record, message: str) -> None:
    with pytest.raises(BadData, match=r"o\.jsonl:2: " + message):
        content(record)


@pytest.mark.parametrize(
    "order",
    [
        ["caption"],
        ["media", "poem"],
        ["media", "caption", "caption"],
        ["media", "question"],
        ["media", "answer", "question"],
    ],
)
def test_impossible_orders_are_refused(order) -> None:
    with pytest.raises(ValueError, match="order="):
        Ordered(order=order)
