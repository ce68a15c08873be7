"""Files that are one JSON array."""

import json

import pytest

from keyekit.data.conversations.llava import Llava
from keyekit.data.errors import BadData
from keyekit.data.sources.json_array import JsonArray


def test_entries_are_read_by_number_and_named_by_place(tmp_path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([{"id": "7", "image": "7.jpg", "conversations": turns}, {"conversations": 3}]))
    source = JsonArray(str(path), format=Llava(), media="/coco")
    assert len(source) == 2
    assert source[0].id == "7"
    assert str(source[0].media[0].path) == "/coco/7.jpg"
    with pytest.raises(BadData, match=r"llava\.json\[1\]: conversations: a list"):
        source[1]


@pytest.mark.parametrize("text", ['{"a": 1}', "[1,", "\xff"])
def test_another_file_is_refused_by_name(tmp_path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadData, match=r"a\.json"):
        len(JsonArray(str(tmp_path / "a.json")))
