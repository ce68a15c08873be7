"""Parquet files, written by pyarrow."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from keyekit.data.conversations.llava import Llava
from keyekit.data.conversations.sharegpt import ShareGPT
from keyekit.data.errors import BadData
from keyekit.data.sources.jsonl import JsonLines
from keyekit.data.sources.parquet import Parquet

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def picture(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int) -> list[dict]:
    mixed = [
        {"type": "image", "image": "a.png", "min_pixels": 784},
        {"type": "text", "text": "What?"},
        {"type": "video", "video": "a.mp4", "fps": 2.0},
    ]
    return [
        {
            "id": f"row {number}",
            "messages": [
                {"role": "user", "content": mixed[: 1 + number % 3]},
                {"role": "assistant", "content": [mixed[1]]},
            ],
        }
        for number in range(count)
    ]


def test_rows_are_what_the_same_lines_are(tmp_path) -> None:
    table = pyarrow.Table.from_pylist(rows(23))
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(23)))
    source, lines = Parquet(str(tmp_path / "a.parquet")), JsonLines(str(tmp_path / "a.jsonl"))
    assert len(source) == 23
    order = np.random.default_rng(0).permutation(23).tolist()
    assert [source[index] for index in order] == [lines[index] for index in order]
    assert pickle.loads(pickle.dumps(source))[7] == lines[7]


def test_pictures_inside_become_files(tmp_path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhich grey?"}, {"from": "gpt", "value": "This."}]
    table = pyarrow.Table.from_pylist(
        [
            {"image": {"bytes": picture(1), "path": "one.png"}, "conversations": turns},
            {"image": {"bytes": picture(2), "path": None}, "conversations": turns},
            {"image": {"bytes": None, "path": "there.png"}, "conversations": turns},
        ]
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    source = Parquet(str(tmp_path / "a.parquet"), format=Llava(), unpacked=str(tmp_path / "media"))
    for index in range(2):
        path = source[index].media[0].path
        assert path.parent == tmp_path / "media"
        assert np.asarray(Image.open(path)).max() == index + 1
        assert source[index].media[0].path == path
    assert source[2].media[0].path == tmp_path / "there.png"
    assert source[0].id == f"{tmp_path}/a.parquet:1"


def test_columns_of_json_text_and_lists_of_bytes(tmp_path) -> None:
    turns = [{"from": "human", "value": "<image><image>\nWhich is darker?"}, {"from": "gpt", "value": "The first."}]
    entry = {"images": [picture(1), picture(2)], "conversations": json.dumps(turns), "other": 1}
    broken = {"images": [], "conversations": "{", "other": 2}
    parquet.write_table(pyarrow.Table.from_pylist([entry, broken]), tmp_path / "a.parquet")
    source = Parquet(
        str(tmp_path / "a.parquet"),
        format=ShareGPT(),
        columns=["images", "conversations"],
        json_columns=["conversations"],
    )
    assert [np.asarray(Image.open(item.path)).max() for item in source[0].media] == [1, 2]
    with pytest.raises(BadData, match=r"a\.parquet:2: column 'conversations' is not valid JSON"):
        source[1]


def test_files_that_are_none_vanish_or_change(tmp_path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadData, match=r"bad\.parquet: not a Parquet file"):
        len(Parquet(str(tmp_path / "bad.parquet")))
    parquet.write_table(pyarrow.Table.from_pylist(rows(4)), tmp_path / "a.parquet", row_group_size=2)
    source = Parquet(str(tmp_path / "a.parquet"), row_groups=1)
    assert source[0].id == "row 0"
    (tmp_path / "a.parquet").rename(tmp_path / "b.parquet")
    with pytest.raises(BadData, match="is gone") as error:
        source[3]
    assert error.value.reason == "missing_shard"
    (tmp_path / "b.parquet").rename(tmp_path / "a.parquet")
    assert source[3].id == "row 3"
    parquet.write_table(pyarrow.Table.from_pylist(rows(9)), tmp_path / "a.parquet")
    with pytest.raises(BadData, match="has changed"):
        source[3]
