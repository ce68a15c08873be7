"""One safetensors file, against the library that wrote it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from keyekit.models.weights.shard import DTYPES, Shard
from keyekit.models.weights.source import CheckpointError

TENSORS = {
    "wide": torch.randn(7, 5, 3),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4, dtype=torch.bfloat16),
    "narrow": torch.randn(3, 5).bfloat16(),
    "counts": torch.arange(9),
}


def test_whole_tensors_and_regions(tmp_path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    shard = Shard(tmp_path / "x.safetensors")
    assert shard.metadata == {"format": "pt"}
    assert shard.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(shard.read(name, (0,) * tensor.ndim, tuple(tensor.shape)), tensor)
    assert torch.equal(shard.read("wide", (2, 1, 1), (3, 4, 2)), TENSORS["wide"][2:5, 1:5, 1:3])
    assert shard.read("wide", (7, 0, 0), (0, 5, 3)).shape == (0, 5, 3)


def test_whole_rows_are_a_storage_of_their_own(tmp_path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    rows = Shard(tmp_path / "x.safetensors").read("wide", (2, 0, 0), (3, 5, 3))
    assert torch.equal(rows, TENSORS["wide"][2:5])
    assert rows.untyped_storage().nbytes() == rows.nbytes


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_every_dtype(tmp_path, dtype) -> None:
    tensor = torch.arange(6).to(dtype)
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    read = Shard(tmp_path / "x.safetensors").read("x", (1,), (3,))
    assert read.dtype == dtype
    assert torch.equal(read.float(), tensor[1:4].float())


def test_data_at_odd_places_is_read(tmp_path) -> None:
    values = torch.tensor([1.5, -2.0])
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * (1 - len(header) % 2)  # an odd length
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + values.numpy().tobytes())
    assert torch.equal(Shard(tmp_path / "x.safetensors").read("x", (0,), (2,)), values)


def test_a_truncated_file_names_itself_and_what_is_cut_off(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"first": torch.randn(8), "second": torch.randn(8), "third": torch.randn(8)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.raises(CheckpointError, match=r"x\.safetensors is cut off.* second and 1 more tensors are incomplete"):
        Shard(path)
    for length in (0, 5, 30):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"x\.safetensors is no safetensors file or is cut off inside"):
            Shard(path)


def test_what_is_no_safetensors_is_refused(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        Shard(path)
    for entry, problem in (
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}, "x in .* has the dtype F4; known are F64"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, r"x in .* takes 4 bytes, but \[2\] of F32 are 8"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "the file is damaged"),
    ):
        header = json.dumps({"x": entry}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(CheckpointError, match=problem):
            Shard(path)
