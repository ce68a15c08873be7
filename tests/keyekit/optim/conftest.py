"""What two ranks do with optimizers and gradients, in one pair of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial

from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.optim.gradient_norms import gradient_norms, network_parts
from keyekit.optim.groups import group_parameters
from keyekit.optim.optimizers import Muon
from keyekit.testing.distributed import run_distributed
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

MIXTURE = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=16)
SPARSE = partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=16)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, seeds: Iterable[int]) -> list[float]:
    losses = []
    for seed in seeds:
        batch = tiny_batch(seed=seed)
        loss = torch.nn.functional.cross_entropy(network.decoder.logits(network(batch).hidden), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def of_every_part() -> nn.Module:
    torch.manual_seed(0)
    return tiny_vision_language_model(SPARSE, MIXTURE)


def backward(model: nn.Module) -> None:
    output = model(tiny_batch())
    (output.hidden.square().sum() + sum(output.losses.values())).backward()


def muon(folder: Path) -> tuple[list[float], list[float]]:
    """Trains with Muon on weights that are spread over the ranks, and once more from a distributed checkpoint."""
    torch.manual_seed(0)
    network = tiny_vision_language_model()
    for layer in network.decoder.layers:
        fully_shard(layer)
    fully_shard(network)
    recipe = Muon()
    optimizer = recipe.build(network, group_parameters(network, [], 3e-3, 0.1))
    losses = train(network, optimizer, range(2))
    state = {"network": network.state_dict(), "optimizer": get_optimizer_state_dict(network, optimizer)}
    dcp.save(state, checkpoint_id=folder)
    losses += train(network, optimizer, range(2, 4))
    optimizer.zero_grad()  # or torch makes no empty state to load into
    again = recipe.build(network, group_parameters(network, [], 3e-3, 0.1))
    state = {"network": network.state_dict(), "optimizer": get_optimizer_state_dict(network, again)}
    dcp.load(state, checkpoint_id=folder)
    network.load_state_dict(state["network"])
    set_optimizer_state_dict(network, again, state["optimizer"])
    return losses, train(network, again, range(2, 4))


def norms(world_size: int) -> dict[str, float]:
    """Of a vision tower on one mesh and decoder layers on another; the rest is on none."""
    model = of_every_part()
    fully_shard(model.vision, mesh=init_device_mesh("cpu", (world_size,)))
    pairs = init_device_mesh("cpu", (1, world_size), mesh_dim_names=("copies", "parts"))
    for layer in model.decoder.layers:
        fully_shard(layer, mesh=pairs)
    backward(model)
    return {name: norm.item() for name, norm in gradient_norms(network_parts(model)).items()}


def refused(world_size: int) -> str:
    """The message about a gradient that waits for a sum."""
    mesh = init_device_mesh("cpu", (world_size,))
    weight = nn.Parameter(DTensor.from_local(torch.zeros(2), mesh, [Partial()]))
    weight.grad = weight.detach()
    try:
        gradient_norms({"partial": [weight]})
    except ValueError as error:
        return str(error)
    return "no error"


def everything(rank: int, world_size: int, folder: Path) -> SimpleNamespace:
    """What a rank finds."""
    losses, resumed = muon(folder)
    return SimpleNamespace(losses=losses, resumed=resumed, norms=norms(world_size), message=refused(world_size))


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory) -> list[SimpleNamespace]:
    return run_distributed(everything, 2, tmp_path_factory.mktemp("optim") / "checkpoint")


@pytest.fixture
def trained() -> Callable[..., list[float]]:
    return train
