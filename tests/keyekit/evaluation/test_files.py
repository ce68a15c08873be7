from __future__ import annotations

from pathlib import Path

import pytest

from keyekit.data.errors import BadData
from keyekit.evaluation.files import field, first_existing, read_json, read_list, read_table


def test_a_table_with_tabs_has_quoted_lines_and_empty_cells(tmp_path: Path):
    path = tmp_path / "a.tsv"
    path.write_text(
        '\N{ZERO WIDTH NO-BREAK SPACE}index\tquestion\tcategory\n7\t"two\nlines, ""said""\t."\t\n', encoding="utf-8"
    )
    assert read_table(path) == [{"index": "7", "question": 'two\nlines, "said"\t.', "category": None}]


def test_a_cell_may_hold_an_image(tmp_path: Path):
    (tmp_path / "a.tsv").write_text(f"index\timage\n0\t{'A' * 300_000}\n")
    assert len(read_table(tmp_path / "a.tsv")[0]["image"]) == 300_000


def test_parquet(tmp_path: Path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"video_id": "001", "level": 2}, {"video_id": "002", "level": None}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet") == rows
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(BadData, match="not readable as Parquet"):
        read_table(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.tsv", "one\ttwo\n1\t2\t3\n", "row 1: more cells"),
        ("a.tsv", 'one\ttwo\n1\t"open', "not readable as a table"),
        ("a.json", "{", "not readable as JSON"),
        ("a.json", "\x00", "not readable as JSON"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str, problem: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(BadData, match=problem) as caught:
        (read_json if name.endswith("json") else read_table)(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_files_are_named(tmp_path: Path):
    for read in (read_json, read_table):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read(tmp_path / "nowhere.tsv")
    with pytest.raises(FileNotFoundError, match="no folder of videos: expected video or videos"):
        first_existing(tmp_path, ("video", "videos"), "folder of videos")
    (tmp_path / "videos").mkdir()
    assert first_existing(tmp_path, ("video", "videos"), "folder of videos").name == "videos"


def test_a_missing_field_is_told_with_those_that_there_are():
    assert field({"a": 0}, "a", "row 1") == 0
    with pytest.raises(BadData, match="row 1: 'b' is missing; there are a"):
        field({"a": 0}, "b", "row 1")
    with pytest.raises(BadData, match="row 2: 'b' is missing"):
        field([], "b", "row 2")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ("['a.jpg', \"b.jpg\"]", ["a.jpg", "b.jpg"]),
        ("a.jpg", ["a.jpg"]),
        (["a", "b"], ["a", "b"]),
        ("[]", []),
        (3, ["3"]),
    ],
)
def test_lists_in_cells(value, entries):
    assert read_list(value, "row 1") == entries


def test_a_cell_is_read_and_never_run():
    with pytest.raises(BadData, match="row 1"):
        read_list("[__import__('os').getcwd()]", "row 1")
