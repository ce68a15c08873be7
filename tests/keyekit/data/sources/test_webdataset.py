"""WebDataset shards, written and read by the library of that name where it is installed."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from keyekit.data.conversations.llava import Llava
from keyekit.data.conversations.ordered import Ordered
from keyekit.data.errors import BadData
from keyekit.data.sources.webdataset import WebDataset


def picture(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def captioned(count: int, first: int = 0) -> dict[str, bytes]:
    names = range(first, first + count)
    return {
        name: content
        for number in names
        for name, content in (
            (f"{number:06d}.png", picture(number)),
            (f"{number:06d}.txt", f"grey {number}\n".encode()),
        )
    }


def test_pictures_with_captions_over_several_shards_in_any_order(tmp_path) -> None:
    write_shard(tmp_path / "a-000.tar", captioned(5))
    write_shard(tmp_path / "a-001.tar", captioned(3, first=5))
    source = WebDataset(str(tmp_path / "a-{000..001}.tar"), format=Ordered())
    assert len(source) == 8
    for index in np.random.default_rng(0).permutation(8).tolist():
        sample = source[index]
        assert sample.id == f"{index:06d}"
        assert sample.messages[0].text == f"grey {index}"
        assert np.asarray(Image.open(sample.media[0].path)).max() == index
    assert pickle.loads(pickle.dumps(source))[6] == source[6]
    assert (tmp_path / "a-000.tar.index").is_file()
    assert WebDataset(str(tmp_path / "a-000.tar"), format=Ordered())[4] == source[4]


def test_shards_of_the_library_read_as_the_library_reads_them(tmp_path) -> None:
    library = pytest.importorskip("webdataset")
    with library.TarWriter(str(tmp_path / "a.tar")) as sink:
        for number in range(7):
            turns = [{"from": "human", "value": f"<image>\nAsk {number}?"}, {"from": "gpt", "value": "yes"}]
            record = {"image": f"somewhere/else/{number}.png", "conversations": turns}
            sink.write({"__key__": f"folder/s{number}", "png": picture(number), "json": record})
    source = WebDataset(str(tmp_path / "a.tar"), format=Llava())
    theirs = list(library.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert len(source) == len(theirs) == 7
    for mine, other in zip(source, theirs, strict=True):
        assert mine.id == other["__key__"]
        assert mine.media[0].path.read_bytes() == other["png"]
        assert mine.question == json.loads(other["json"])["conversations"][0]["value"].removeprefix("<image>\n")


def test_several_media_are_told_apart_by_name(tmp_path) -> None:
    content = [{"type": "image", "image": f"s.{name}.png"} for name in ("left", "right")]
    record = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "ok"}]}
    members = {"s.left.png": picture(1), "s.right.png": picture(2), "s.json": json.dumps(record).encode()}
    write_shard(tmp_path / "a.tar", members)
    sample = WebDataset(str(tmp_path / "a.tar"), unpacked=str(tmp_path / "media"))[0]
    assert [np.asarray(Image.open(item.path)).max() for item in sample.media] == [1, 2]
    assert all(item.path.is_relative_to(tmp_path / "media") for item in sample.media)


def test_bad_shards_and_members_are_named(tmp_path) -> None:
    (tmp_path / "none.tar").write_bytes(b"no tar" * 200)
    with tarfile.open(tmp_path / "small.tar", "w:gz"):
        pass
    for name in ("none.tar", "small.tar"):
        with pytest.raises(BadData, match=f"{name}: not an uncompressed tar"):
            len(WebDataset(str(tmp_path / name)))
    write_shard(tmp_path / "out.tar", {"../x.txt": b"1"})
    with pytest.raises(BadData, match="points outside"):
        len(WebDataset(str(tmp_path / "out.tar")))
    write_shard(tmp_path / "a.tar", {"x.json": b"{", "y.txt": b"\xff"})
    for index, message in enumerate([r"a\.tar/x\.json: not valid JSON", r"a\.tar/y\.txt: not UTF-8"]):
        with pytest.raises(BadData, match=message):
            WebDataset(str(tmp_path / "a.tar"))[index]


def test_a_shard_that_vanishes_or_is_cut_is_noticed(tmp_path) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, captioned(4))
    source = WebDataset(str(path), format=Ordered())
    assert source[0].id == "000000"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadData, match="has changed"):
        source[3]
    path.unlink()
    with pytest.raises(BadData, match="is gone") as error:
        source[3]
    assert error.value.reason == "missing_shard"
