"""What every optimizer has to fulfil."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_learns", "check_groups", "check_state_survives_a_checkpoint")
"""Functions of this module that make up the suite."""


def check_learns(cls: type) -> None:
    """It fits a linear map."""
    network, optimizer = _begun(cls)
    losses = [_step(network, optimizer) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0], f"after 60 steps the loss is {losses[-1]:.3f}, it began at {losses[0]:.3f}"


def check_groups(cls: type) -> None:
    """Every parameter is in one group, with the learning rate and decay that it was given, and a rate of 0 moves nothing."""
    network, optimizer = _begun(cls)
    rates = [(id(p), g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]]
    wanted = [(id(network[0].weight), 0.05, 0.1), (id(network[0].bias), 0.05, 0.0), (id(network[1].weight), 0.1, 0.0)]
    assert sorted(rates) == sorted(wanted), "learning rates, decay or parameters are not those of the groups"
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in network.parameters()]
    _step(network, optimizer)
    unmoved = [torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)]
    assert all(unmoved), "a schedule cannot stop it: weights move at a learning rate of 0"


def check_state_survives_a_checkpoint(cls: type) -> None:
    """Steps after loading its state are the same as without a break."""
    network, optimizer = _begun(cls)
    for _ in range(3):
        _step(network, optimizer)
    again, resumed = _begun(cls)
    again.load_state_dict(network.state_dict())
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for _ in range(2):
        assert _step(network, optimizer) == _step(again, resumed), "a resumed run has other losses"


def _begun(cls: type) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4, bias=False))
    groups = [
        {"params": [network[0].weight], "lr": 0.05, "weight_decay": 0.1, "name": "decayed"},
        {"params": [network[0].bias], "lr": 0.05, "weight_decay": 0.0, "name": "plain"},
        {"params": [network[1].weight], "lr": 0.1, "weight_decay": 0.0, "name": "fast"},
    ]
    return network, make(cls).build(network, groups)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    generator = torch.Generator().manual_seed(0)
    inputs, wanted = torch.randn(32, 6, generator=generator), torch.randn(6, 4, generator=generator)
    optimizer.zero_grad()
    loss = (network(inputs) - inputs @ wanted).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()
