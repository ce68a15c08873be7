from __future__ import annotations

import torch
from torch import nn

from keyekit.models.parameters import count_parts, count_unused, largest_unit
from keyekit.models.presets import PRESETS, keye_vl_2_30b_a3b
from keyekit.testing.tiny import tiny_vision_language_model


def test_parts_of_2_0() -> None:  # Keye-VL-2.0 sheet 2.6
    entry = PRESETS["keye_vl_2_30b_a3b"]
    with torch.device("meta"):
        network = entry.build()
    parts = {part.name: part for part in count_parts(network, entry.unused)}
    assert parts["attention"].used == 48 * (18_874_368 + 256)
    assert parts["indexers"].used == 48 * 2_261_184
    assert parts["routers"].used == 48 * 262_144
    assert parts["experts"].used == 48 * 603_979_776
    assert parts["experts"].active == 48 * 603_979_776 // 16
    assert parts["vision tower"].active == 0
    assert (parts["packing position table"].shipped, parts["packing position table"].used) == (37_748_736, 0)
    assert sum(part.shipped for part in parts.values()) == 31_122_082_160
    assert sum(part.used for part in parts.values()) == 31_084_333_424
    # Sheet 2.6: about 2.84 B in the decoder stack and 0.31 B in the output layer.
    assert round(sum(part.active for part in parts.values()) / 1e9, 2) == 3.15


def test_unused_tensors_of_the_8b() -> None:  # Keye-VL 8B sheet 1.7
    counts = {part.name: part.shipped for part in count_unused(PRESETS["keye_vl_8b"].unused)}
    assert counts == {"packing position table": 37_748_736, "pooling head": 15_238_352}


def test_tied_embeddings_count_once_and_are_active() -> None:
    network = tiny_vision_language_model()
    network.decoder.lm_head.weight = network.decoder.embed_tokens.weight
    parts = {part.name: part for part in count_parts(network)}
    assert parts["embedding and output layer"].used == parts["embedding and output layer"].active == 64 * 32
    assert sum(part.used for part in parts.values()) == sum(p.numel() for p in network.parameters())


def test_a_foreign_network_is_divided_by_its_modules() -> None:
    network = nn.ModuleDict({"one": nn.Linear(2, 3), "two": nn.Linear(3, 1)})
    assert [(part.name, part.used) for part in count_parts(network)] == [("one", 9), ("two", 4)]


def test_the_largest_unit_is_a_layer_or_the_embedding() -> None:
    with torch.device("meta"):
        assert largest_unit(keye_vl_2_30b_a3b()) == 625_381_824
    assert largest_unit(nn.Sequential(nn.Embedding(100, 7), nn.ModuleList([nn.Linear(3, 3)]))) == 700
