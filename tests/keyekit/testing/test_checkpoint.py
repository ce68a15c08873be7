"""The tiny released folder is one that the safetensors library reads, and its names are the sheets'."""

import json

import pytest
import torch
from safetensors.torch import load_file

from keyekit.testing.checkpoint import tiny_checkpoint


@pytest.mark.parametrize("shards", [1, 4])
def test_the_files_hold_what_is_returned(tmp_path, shards: int) -> None:
    tensors = tiny_checkpoint(tmp_path, shards=shards)
    files = sorted(tmp_path.glob("*.safetensors"))
    read = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert len(files) == shards
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_families_differ_where_the_sheets_say(tmp_path) -> None:
    names = {family: tiny_checkpoint(tmp_path / family, family) for family in ("Keye", "KeyeVL1_5", "KeyeVL2")}
    assert names["Keye"]["mlp_AR.pre_norm.weight"].shape == (24,)
    assert names["KeyeVL1_5"]["mlp_AR.pre_norm.weight"].shape == (96,)
    assert "model.layers.0.self_attn.sa_indexer.k_norm.bias" in names["KeyeVL2"]
    assert "model.layers.0.mlp.gate_proj.weight" in names["Keye"]
    single = tiny_checkpoint(tmp_path / "single", experts="separate")
    assert single["model.layers.1.mlp.experts.2.down_proj.weight"].shape == (32, 24)
    assert json.loads((tmp_path / "KeyeVL2" / "config.json").read_text())["sa_config"]["topk"] == 8
