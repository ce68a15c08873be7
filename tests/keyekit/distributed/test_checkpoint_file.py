"""One file, whole: what a failing disk, a cut and a folder get."""

from __future__ import annotations

import os

import pytest
import torch

from keyekit.distributed import checkpoint_file
from keyekit.distributed.checkpoint_file import WholeCheckpointIO
from keyekit.models.weights import CheckpointError

CHECKPOINT = {"state_dict": {"weight": torch.arange(50.0)}, "loops": {"step": 3}}


def test_a_file_comes_back(tmp_path) -> None:
    path = tmp_path / "new" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(CHECKPOINT, path)
    found = WholeCheckpointIO().load_checkpoint(path, weights_only=True)
    assert torch.equal(found["state_dict"]["weight"], CHECKPOINT["state_dict"]["weight"])
    assert found["loops"] == {"step": 3}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_an_error_while_writing_leaves_the_former_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(CHECKPOINT, path)
    before = path.read_bytes()

    def full(checkpoint, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_file.torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        WholeCheckpointIO().save_checkpoint({}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    order = []
    sync, put = os.fsync, checkpoint_file.put_in_place
    monkeypatch.setattr(checkpoint_file.os, "fsync", lambda handle: (order.append("sync"), sync(handle)))
    monkeypatch.setattr(checkpoint_file, "put_in_place", lambda *paths: (order.append("name"), put(*paths)))
    WholeCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "last.ckpt")
    assert order[:2] == ["sync", "name"]


def test_a_cut_file_and_a_folder_are_refused_with_advice(tmp_path) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint(CHECKPOINT, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"last\.ckpt cannot be used: it is cut off.*--run\.resume"):
        WholeCheckpointIO().load_checkpoint(path)
    with pytest.raises(CheckpointError, match="distributed checkpoint"):
        WholeCheckpointIO().load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError):
        WholeCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(TypeError, match="storage_options"):
        WholeCheckpointIO().save_checkpoint(CHECKPOINT, path, storage_options={})
