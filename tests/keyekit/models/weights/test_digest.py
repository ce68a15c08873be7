"""Digests follow contents, not places."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

from keyekit.models.weights.digest import weights_digest


def test_a_digest_follows_every_byte_and_nothing_else(tmp_path):
    (tmp_path / "a").mkdir()
    save_file({"w": torch.arange(6.0)}, tmp_path / "a" / "model.safetensors")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{}")
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")
    moved = torch.arange(6.0)
    moved[3] += 1e-6
    save_file({"w": moved}, tmp_path / "b" / "model.safetensors")
    assert weights_digest(tmp_path / "a") != weights_digest(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="no weights"):
        weights_digest(tmp_path)
