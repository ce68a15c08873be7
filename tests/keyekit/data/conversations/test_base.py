"""What formats share, and a format of one's own."""

from pathlib import Path

import pytest

from keyekit.data.conversations.base import ConversationFormat, Fields, split_markers
from keyekit.data.errors import BadData


class Pair(ConversationFormat):
    """A question and an answer."""

    def messages(self, fields: Fields) -> list[dict]:
        return [
            {"role": "user", "content": fields.text("q")},
            {"role": "assistant", "content": fields.text("a", "none")},
        ]


def test_a_format_of_ones_own_is_one_method() -> None:
    sample = Pair().parse({"q": "x", "id": 7, "task": "pairs", "answer": "y", "meta": {"k": 1}}, "f:1", Path("/"))
    assert (sample.id, sample.task, sample.answer, sample.meta) == ("7", "pairs", "y", {"k": 1})
    assert [message.text for message in sample.messages] == ["x", "none"]
    with pytest.raises(BadData, match="f:1: q: text is wanted, got None"):
        Pair().parse({}, "f:1", Path("/"))


def test_line_breaks_beside_a_marker_belong_to_it() -> None:
    media = {"image": iter(["a", "b"]), "video": iter(["c"])}
    items = split_markers("x\n\n<image>\n\ny<video>\n<image>", media, ValueError)
    assert [next(value for name, value in item.items() if name != "type") for item in items] == [
        "x\n", "a", "\ny", "c", "b",
    ]  # fmt: skip
