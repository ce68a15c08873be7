"""Tensors that ride along."""

import logging

import torch
from safetensors.torch import load_file, save_file

from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.network import NetworkSource
from keyekit.models.weights.passengers import WithPassengers
from keyekit.testing.checkpoint import tiny_checkpoint


def test_only_known_leftovers_ride_and_the_rest_is_told(tmp_path, caplog) -> None:
    tiny_checkpoint(tmp_path, "Keye", shards=1)
    path = tmp_path / "model.safetensors"
    save_file({**load_file(path), "text_model.head.weight": torch.zeros(2)}, path)
    network = torch.nn.Module()
    network.lm_head = torch.nn.Linear(4, 4, bias=False)
    origin = WeightFolder(tmp_path)
    with caplog.at_level(logging.INFO):
        source = WithPassengers(NetworkSource(network), origin)
    riding = [name for name in source.tensors if name != "lm_head.weight"]
    assert riding == [name for name in origin.tensors if (".head." in name and "visual" in name) or "packing" in name]
    assert len(riding) == 4
    assert "are not the network's and are left out, first" in caplog.text
    assert torch.equal(source.read("lm_head.weight", (0, 0), (4, 4)), network.lm_head.weight)
    probe = "visual.vision_model.head.probe"
    assert torch.equal(source.read(probe, (0, 0, 0), (1, 1, 24)), load_file(path)[probe])
    assert source.where(probe) == str(path)
