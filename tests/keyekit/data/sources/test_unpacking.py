"""Media written out once."""

from keyekit.data.sources.unpacking import unpack, write_once


def test_the_same_bytes_are_one_file(tmp_path) -> None:
    first, again, other = (unpack(tmp_path / "new", content, "a.PNG") for content in (b"x", b"x", b"y"))
    assert first == again != other
    assert first.suffix == ".png"
    assert first.read_bytes() == b"x"
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_nothing_but_whole_files_is_left(tmp_path) -> None:
    write_once(tmp_path / "deep/a", b"1")
    write_once(tmp_path / "deep/a", b"2")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "deep").iterdir()] == [("a", b"2")]
