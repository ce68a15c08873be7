"""What a rank holds when every part lies in its own way, against shares counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from keyekit.models.memory import PRECISIONS
from keyekit.models.placement import Placement, placed_state
from keyekit.models.presets import keye_vl_2_30b_a3b
from keyekit.testing.tiny import tiny_vision_language_model

WIDE = PRECISIONS["bf16-gathered"]


def sizes(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_part_has_its_own_share() -> None:
    network = tiny_vision_language_model()
    network.projector.requires_grad_(False)
    plans = {"vision": Placement(shards=1), "projector": Placement(shards=2), "decoder": Placement()}
    held, host = placed_state(network, lambda part: plans.get(part, Placement()), WIDE, devices=8)
    vision, projector, decoder = map(sizes, (network.vision, network.projector, network.decoder))
    assert held.weights == 4 * (vision + projector / 2 + decoder / 8)
    assert held.gradients == 4 * (vision + decoder / 8)
    assert held.optimizer == 2 * held.gradients
    assert host == 0


def test_offloaded_parts_leave_the_device() -> None:
    network = tiny_vision_language_model()
    place = {"decoder": Placement(offloaded=True)}
    held, host = placed_state(network, lambda part: place.get(part, Placement(shards=1)), WIDE, devices=2)
    assert host == 16 * sizes(network.decoder) / 2
    assert held.weights == 4 * (sizes(network.vision) + sizes(network.projector))


def test_experts_are_divided_before_a_layer_is_gathered() -> None:
    with torch.device("meta"):
        network = keye_vl_2_30b_a3b()
    gathered = [
        placed_state(network, lambda part: Placement(gathered=2), WIDE, devices=64, expert_ranks=ranks)[0].gathered
        for ranks in (1, 8)
    ]
    experts = 128 * 3 * 2048 * 768  # Keye-VL-2.0 sheet 2.2
    layer = sizes(network.decoder.layers[0])
    assert gathered[0] == pytest.approx(3 * 2 * layer)
    table = 151936 * 2048
    assert gathered[1] == pytest.approx(3 * 2 * max(layer - experts + experts / 8, table))


def test_shared_tensors_count_once() -> None:
    network = nn.ModuleDict({"first": nn.Linear(3, 3, bias=False), "second": nn.Linear(3, 3, bias=False)})
    network["second"].weight = network["first"].weight
    held, _ = placed_state(network, lambda part: Placement(), WIDE, devices=3)
    assert held.weights == 4 * 9 / 3
