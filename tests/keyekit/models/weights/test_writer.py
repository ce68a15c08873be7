"""Files against those of the safetensors library."""

import errno

import pytest
import torch
from safetensors.torch import load_file

from keyekit.models.weights import writer
from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.layout import Layout
from keyekit.models.weights.source import Stored
from keyekit.models.weights.writer import row_blocks, write_shards
from keyekit.testing.checkpoint import tiny_checkpoint


@pytest.mark.parametrize("experts", ["fused", "separate"])
@pytest.mark.parametrize("block", [1, 1000, 2**26])
def test_files_equal_the_library_s_to_the_byte(tmp_path, monkeypatch, experts, block) -> None:
    tiny_checkpoint(tmp_path / "a", experts=experts)
    (tmp_path / "b").mkdir()
    source = WeightFolder(tmp_path / "a")
    monkeypatch.setattr(row_blocks, "__defaults__", (block,))
    written = []
    write_shards(source, source.layout, tmp_path / "b", written.append)
    files = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert len(files) == 3
    for name in files:
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes(), name
    assert sum(written) == sum(stored.nbytes for stored in source.tensors.values())


def test_the_form_of_experts_changes(tmp_path) -> None:
    tiny_checkpoint(tmp_path / "a", experts="separate")
    fused = WeightFolder(tmp_path / "a")
    (tmp_path / "b").mkdir()
    write_shards(fused, Layout.plan(fused.tensors, "fused"), tmp_path / "b")
    (tmp_path / "c").mkdir()
    write_shards(WeightFolder(tmp_path / "b"), Layout.plan(fused.tensors, "separate"), tmp_path / "c")
    original = {name: t for file in (tmp_path / "a").glob("*.safetensors") for name, t in load_file(file).items()}
    again = load_file(tmp_path / "c" / "model.safetensors")
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in original.items())
    assert sum(".experts." in name for name in load_file(tmp_path / "b" / "model.safetensors")) == 4


def test_blocks_cover_odd_shapes() -> None:
    for shape in ((), (0, 3), (1,), (7, 0), (7, 3, 2)):
        stored = Stored(torch.float32, shape)
        blocks = list(row_blocks(stored, 50))
        if shape and shape[0]:
            assert sum(size[0] for _, size in blocks) == shape[0]
            assert all(size[1:] == shape[1:] for _, size in blocks)
    assert list(row_blocks(Stored(torch.float32, ()), 50)) == [((), ())]


class _Full:
    """A file on a disk with room for ``free`` bytes."""

    free = 1500

    def __init__(self, path, mode) -> None:
        self.file = open(path, "wb", buffering=0)  # noqa: PTH123, SIM115
        self.used = 0

    def write(self, content) -> int:
        room = self.free - self.used
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.used += min(room, len(content))
        return self.file.write(content[:room])

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("collective", [False, True])
def test_a_full_disk_names_file_and_tensor(tmp_path, monkeypatch, collective) -> None:
    tiny_checkpoint(tmp_path / "a", shards=1)
    (tmp_path / "b").mkdir()
    source = WeightFolder(tmp_path / "a")
    _Full.free = (tmp_path / "a" / "model.safetensors").stat().st_size - 40
    last = source.layout.names[-1]
    monkeypatch.setattr(writer.io, "FileIO", _Full)
    read = []
    with pytest.raises(OSError, match=f"No space left on device while writing {last}; a folder") as caught:
        write_shards(source, source.layout, tmp_path / "b", read.append, collective=collective)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "b" / "model.safetensors")
    _Full.free = 10
    read.clear()
    with pytest.raises(OSError, match="while writing its header"):
        write_shards(source, source.layout, tmp_path / "b", read.append, collective=collective)
    assert sum(read) == sum(stored.nbytes for stored in source.tensors.values())
