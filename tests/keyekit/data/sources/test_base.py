"""The contract of a source."""

import pytest

from keyekit.data.conversations.llava import Llava
from keyekit.data.sources.base import Record, Source


class Counted(Source):
    """Numbers as conversations."""

    def __len__(self) -> int:
        return 3

    def record(self, index: int) -> Record:
        return Record({"messages": [{"role": "user", "content": str(index)}]}, f"counted:{index}", None)  # pyright: ignore


def test_a_source_of_ones_own_needs_a_length_and_records(tmp_path) -> None:
    source = Counted()
    assert [sample.question for sample in source] == ["0", "1", "2"]
    assert [sample.id for sample in source] == ["counted:0", "counted:1", "counted:2"]
    assert source.fingerprint() == "Counted:3"
    for number in (-1, 3):
        with pytest.raises(IndexError, match="has 3"):
            source[number]


def test_the_format_decides_how_a_record_is_understood() -> None:
    with pytest.raises(ValueError, match="counted:0: conversations"):
        Counted(Llava())[0]
