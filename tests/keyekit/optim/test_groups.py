"""Parameter groups by name pattern."""

import pytest
import torch
from torch import nn

from keyekit.optim.groups import ParameterGroup, freeze, group_parameters


def network() -> nn.ModuleDict:
    return nn.ModuleDict({"vision": nn.Linear(3, 3), "decoder": nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))})


def test_every_trainable_parameter_is_in_one_group_with_its_rate() -> None:
    model = network()
    groups = [ParameterGroup(pattern="vision", learning_rate_scale=0.1, weight_decay=0.5)]
    divided = group_parameters(model, groups, learning_rate=1.0, weight_decay=0.2)
    found = {id(p): group for group in divided for p in group["params"]}
    assert len(found) == len(list(model.parameters()))
    assert found[id(model["vision"].weight)]["lr"] == pytest.approx(0.1)
    assert found[id(model["vision"].weight)]["weight_decay"] == 0.5
    assert found[id(model["decoder"][0].weight)]["lr"] == 1.0
    assert found[id(model["decoder"][0].weight)]["weight_decay"] == 0.2
    for vector in (model["vision"].bias, model["decoder"][1].weight):
        assert found[id(vector)]["weight_decay"] == 0.0
    torch.optim.AdamW(divided)


def test_the_first_match_decides_and_freezing_leaves_parameters_out() -> None:
    model = network()
    groups = [
        ParameterGroup(pattern=r"decoder\.0\.", frozen=True),
        ParameterGroup(pattern="decoder", learning_rate_scale=2.0),
    ]
    freeze(model, groups)
    assert [p.requires_grad for p in model["decoder"].parameters()] == [False, False, True, True]
    divided = group_parameters(model, groups, 1.0, 0.0)
    members = {id(p) for group in divided for p in group["params"]}
    assert id(model["decoder"][0].weight) not in members
    assert id(model["decoder"][1].weight) in members


def test_a_pattern_without_parameters_is_an_error() -> None:
    with pytest.raises(ValueError, match="'visoin' matches no parameter; names begin with decoder, vision"):
        freeze(network(), [ParameterGroup(pattern="visoin")])
