"""JSONL manifests."""

import pytest

from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.sources import read_jsonl

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
