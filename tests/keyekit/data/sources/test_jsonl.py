"""JSONL manifests."""

import json
import os
import pickle

import numpy as np
import pytest

from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.sources.jsonl import JsonLines, read_jsonl

GOOD = '{"messages": [{"role": "user", "content": "hello"}]}'


def test_lines_become_samples_and_blank_lines_are_allowed(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n\n{GOOD}\n")
    assert [sample.id for sample in read_jsonl(path, ErrorPolicy("raise"))] == [f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize("line", ["[1, 2]", "{not json", '{"messages": 1}', "\x00\x01"])
def test_a_broken_line_raises_with_file_and_number_or_is_counted(tmp_path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{line}\n{GOOD}\n")
    with pytest.raises(BadData, match=r"a\.jsonl:2"):
        read_jsonl(path, ErrorPolicy("raise"))
    policy = ErrorPolicy("skip")
    assert len(read_jsonl(path, policy)) == 2
    assert policy.counts == {"bad_line": 1}


def test_an_empty_manifest_is_counted_or_raised_and_a_missing_one_is_always_an_error(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n")
    policy = ErrorPolicy("skip")
    assert read_jsonl(path, policy) == []
    assert policy.counts == {"empty_manifest": 1}
    with pytest.raises(BadData, match="no usable sample"):
        read_jsonl(path, ErrorPolicy("raise"))
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        read_jsonl(tmp_path / "b.jsonl", ErrorPolicy("skip"))


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 200_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        '{"messages": [{"role": "user", "content": "caf\xe9"}]}'.encode("latin-1"),
        rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
        b'{"a": ' * 500 + b"1" + b"}" * 500,
    ],
    ids=["deep", "huge number", "not UTF-8", "half a surrogate pair", "deep object"],
)
def test_hostile_lines_are_bad_lines_like_others(tmp_path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + line + b"\n" + GOOD.encode())
    policy = ErrorPolicy("skip")
    assert len(read_jsonl(path, policy)) == 2
    assert policy.counts == {"bad_line": 1}
    with pytest.raises(BadData, match=r"a\.jsonl:2"):
        read_jsonl(path, ErrorPolicy("raise"))


def test_byte_order_marks_and_windows_line_ends_are_allowed(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n" + GOOD.encode() + b"\r\n")
    assert len(read_jsonl(path, ErrorPolicy("raise"))) == 2


def write(path, names: list[str]) -> None:
    path.write_text(
        "".join(json.dumps({"id": name, "messages": [{"role": "user", "content": name}]}) + "\n" for name in names)
    )


def test_any_line_is_read_by_its_number_as_the_whole_file_is(tmp_path) -> None:
    random = np.random.default_rng(0)
    lines = [
        b"",
        b" \t",
        b"\r",
        GOOD.encode(),
        GOOD.replace("hello", "h\u00e9llo \u4f60\u597d" * 9).encode(),
        b"  " + GOOD.encode(),
    ]
    content = b"\n".join(
        lines[kind] + b"\r" * int(random.integers(2)) for kind in random.integers(len(lines), size=500)
    )
    for ending in (b"", b"\n", b"\n\n"):
        path = tmp_path / "a.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\n" + content + ending)
        source = JsonLines(str(path))
        expected = read_jsonl(path, ErrorPolicy("raise"))
        assert [source[index] for index in random.permutation(len(expected)).tolist()] != expected
        assert [source[index] for index in range(len(source))] == expected


def test_lines_longer_than_what_is_read_at_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("keyekit.data.sources.jsonl._CHUNK", 7)
    write(tmp_path / "a.jsonl", ["a", "b" * 50, "c"])
    assert [sample.id for sample in JsonLines(str(tmp_path / "a.jsonl"))] == ["a", "b" * 50, "c"]


def test_files_follow_each_other_and_samples_keep_their_names(tmp_path) -> None:
    write(tmp_path / "b.jsonl", ["x"])
    (tmp_path / "a.jsonl").write_text(f"\n{GOOD}\n\n{GOOD}\n")
    (tmp_path / "empty.jsonl").write_text("")
    source = JsonLines([str(tmp_path / name) for name in ("b.jsonl", "empty.jsonl", "a.jsonl")])
    names = ["x", f"{tmp_path}/a.jsonl:2", f"{tmp_path}/a.jsonl:4"]
    assert [sample.id for sample in source] == names
    assert [sample.id for sample in pickle.loads(pickle.dumps(source))] == names
    with pytest.raises(IndexError, match="has 3"):
        source[3]
    assert source.fingerprint() != JsonLines(str(tmp_path / "a.jsonl")).fingerprint()


def test_an_opened_index_reads_one_line_and_not_the_file(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, [f"{number:05d}" for number in range(2000)])
    len(JsonLines(str(path)))
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[: len(content) // 2] = b"\x00" * (len(content) // 2)  # whatever else is read would be noticed
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert JsonLines(str(path))[1999].id == "01999"


def test_a_broken_line_names_file_line_and_what_is_wrong(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f"{GOOD}\n{{broken\n{GOOD}\n")
    with pytest.raises(BadData, match=r"a\.jsonl:2: not valid JSON.*column 2"):
        JsonLines(str(path))[1]


def test_media_are_relative_to_the_file_or_to_a_folder(tmp_path) -> None:
    item = {"type": "image", "image": "x.png"}
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": [item]}]}))
    assert JsonLines(str(tmp_path / "a.jsonl"))[0].media[0].path == tmp_path / "x.png"
    assert str(JsonLines(str(tmp_path / "a.jsonl"), media="/pictures")[0].media[0].path) == "/pictures/x.png"
