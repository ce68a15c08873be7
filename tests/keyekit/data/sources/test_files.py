"""Files by pattern and range, and the indexes beside them."""

import os

import pytest

from keyekit.data.errors import BadData
from keyekit.data.sources.files import Stamp, find_files, read_range, stored_index


def test_patterns_name_files_in_a_fixed_order(tmp_path) -> None:
    for name in ("a-0.tar", "a-1.tar", "a-2.tar", "b-x.tar", "b-y.tar"):
        (tmp_path / name).touch()

    def names(*patterns: str) -> list[str]:
        return [path.name for path in find_files([str(tmp_path / pattern) for pattern in patterns])]

    assert names("a-{0..2}.tar") == ["a-0.tar", "a-1.tar", "a-2.tar"]
    assert names("b-{y,x}.tar", "a-?.tar") == ["b-y.tar", "b-x.tar", "a-0.tar", "a-1.tar", "a-2.tar"]
    assert names("*.tar") == sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match=r"a-3\.tar"):
        names("a-{1..3}.tar")
    with pytest.raises(FileNotFoundError, match="no such file of samples"):
        names("c-*.tar")


def test_leading_zeros_and_several_braces(tmp_path) -> None:
    for number in (8, 9, 10):
        (tmp_path / f"x-{number:03d}.b").touch()
    assert [path.name for path in find_files(str(tmp_path / "x-{008..010}.{b}"))] == ["x-008.b", "x-009.b", "x-010.b"]


def test_a_range_of_a_file_that_changed_or_vanished_is_refused(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    stamp = Stamp.of(path)
    assert read_range(path, stamp, 3, 4) == b"3456"
    with pytest.raises(BadData, match="has changed") as error:
        read_range(path, Stamp(stamp.size, stamp.mtime_ns + 1), 3, 4)
    assert error.value.reason == "changed_shard"
    path.unlink()
    for attempt in (lambda: read_range(path, stamp, 3, 4), lambda: Stamp.of(path)):
        with pytest.raises(BadData, match="is gone") as error:
            attempt()
        assert error.value.reason == "missing_shard"


def test_an_index_is_built_once_and_again_when_file_or_version_change(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    built = []

    def build() -> bytes:
        built.append(path.read_bytes())
        return built[-1]

    assert [stored_index(path, 1, build) for _ in range(2)] == [b"one", b"one"]
    assert built == [b"one"]
    assert stored_index(path, 2, build) == b"one"
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert stored_index(path, 2, build) == b"two"
    (tmp_path / "a.index").write_bytes(b"something else")
    assert stored_index(path, 2, build) == b"two"
    assert len(built) == 4
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "a.index"]


def test_an_index_that_cannot_be_kept_is_said_to_be_so(tmp_path, caplog) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    (tmp_path / "a.index/in the way").mkdir(parents=True)  # no file can take this place, whoever asks
    assert stored_index(path, 1, lambda: b"built") == b"built"
    assert "cannot be kept" in caplog.text
    assert {entry.name for entry in tmp_path.iterdir()} == {"a", "a.index"}
