"""Experts divided among 2 and 4 ranks against one process that has all of them: outputs, statistics and all gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.utils.checkpoint import checkpoint

from keyekit.batch import Batch
from keyekit.distributed.expert_parallel import install_expert_parallel
from keyekit.distributed.sequence_parallel import install_sequence_parallel
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.models.weights.network import NetworkSource
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.expert_choice import ExpertChoice
from keyekit.nn.moe.group_limited import GroupLimited
from keyekit.nn.moe.hashing import Hash
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.routers import SigmoidBias
from keyekit.objectives.cross_entropy import CrossEntropy
from keyekit.objectives.router_balance import balance_loss, router_z_loss
from keyekit.testing.distributed import run_distributed
from keyekit.testing.tiny import tiny_batch, tiny_layer_spec, tiny_vision_language_model

TOKENS = (11, 1, 6, 0)
"""Tokens of each rank: one has a single token, one has none."""
_mixture = partial(MixtureOfExperts, num_experts=8, active_experts=3, expert_dim=16)


class Stubborn(SigmoidBias):
    """Sends every token to the same three experts, so that some ranks get no visit."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.bias[:3] = 100.0


LAYERS: dict[str, tuple[Callable[..., MixtureOfExperts], torch.dtype]] = {
    "segments": (partial(_mixture, implementation="segments"), torch.float64),
    "loop": (partial(_mixture, implementation="loop", num_shared_experts=1), torch.float64),
    "grouped": (partial(_mixture, implementation="grouped"), torch.float32),
    "nobody visits some ranks": (partial(_mixture, router=Stubborn), torch.float64),
    "nobody visits some ranks, grouped": (partial(_mixture, router=Stubborn, implementation="grouped"), torch.float32),
    "hash": (partial(_mixture, router=Hash), torch.float64),
    "group limited": (partial(_mixture, router=partial(GroupLimited, num_groups=4, kept_groups=2)), torch.float64),
    "missing visits": (partial(_mixture, router=ExpertChoice), torch.float64),
}
CASES = [(layer, degree, degree == 4) for layer in LAYERS for degree in (2, 4)]


def build(name: str) -> MixtureOfExperts:
    make, dtype = LAYERS[name]
    torch.manual_seed(0)
    layer = make(tiny_layer_spec()).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(10)
    return layer


def inputs(rank: int, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rank)
    hidden = torch.randn(TOKENS[rank], 32, dtype=dtype, generator=generator).requires_grad_()
    return {"hidden": hidden, "tokens": torch.randint(0, 99, (TOKENS[rank],), generator=generator)}


def run_layer(layer: MixtureOfExperts, rank: int, dtype: torch.dtype, recompute: bool) -> dict[str, Tensor]:
    """Output, visits, gradients of the input, and the loss."""
    given = inputs(rank, dtype)
    call = partial(checkpoint, layer, use_reentrant=False) if recompute else layer
    output = call(given["hidden"], tokens=given["tokens"])
    weights = torch.randn(output.hidden.shape, dtype=dtype, generator=torch.Generator().manual_seed(9))
    statistics = output.routing.statistics
    loss = (output.hidden * weights).sum() + balance_loss([statistics])
    if loss.requires_grad:
        loss.backward()
    gradient = torch.zeros_like(given["hidden"]) if given["hidden"].grad is None else given["hidden"].grad
    found = {"output": output.hidden.detach(), "input": gradient, "loss": loss.detach()}
    # Visits are a list that every pass of the layer returns, so that recomputing counts nothing twice.
    return found | {"counts": statistics.counts, "experts": output.routing.experts}


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)) if expected.numel() else 0.0


def summed(gradients: dict[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """The sums over ranks, in one collective."""
    flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
    dist.all_reduce(flat, group=group)
    parts = flat.split([gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


@cache
def in_one_process(name: str) -> tuple[MixtureOfExperts, list[dict[str, Tensor]]]:
    """A layer that has worked for all ranks, one after the other, and what it made."""
    layer = build(name)
    return layer, [run_layer(layer, rank, LAYERS[name][1], False) for rank in range(len(TOKENS))]


def compare_layer(name: str, mesh: DeviceMesh, recompute: bool) -> dict[str, float]:
    """Errors of a divided layer; gradients add up over all ranks."""
    dtype, rank = LAYERS[name][1], dist.get_rank()
    whole, alone = in_one_process(name)
    layer = build(name)
    install_expert_parallel(layer, mesh)
    found = run_layer(layer, rank, dtype, recompute)
    assert torch.equal(found["experts"], alone[rank]["experts"])
    errors = {key: error(found[key], alone[rank][key]) for key in ("output", "input", "loss", "counts")}
    for (key, parameter), (_, other) in zip(layer.named_parameters(), whole.named_parameters(), strict=True):
        if other.grad is None:  # nobody's loss reaches it
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, key
        if isinstance(parameter, DTensor):
            assert isinstance(parameter.grad, DTensor)
            own = parameter.grad.to_local().clone()
            copies = dist.get_world_size() // mesh.size()
            if copies > 1:  # ranks that hold the same experts: here, those of the same column
                every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
                dist.all_gather(every, own)
                own = sum(every[mesh.get_local_rank() :: mesh.size()], start=torch.zeros_like(own))
            errors[key] = error(own, other.grad.chunk(mesh.size())[mesh.get_local_rank()])
        else:
            errors[key] = error(summed({key: parameter.grad})[key], other.grad)
    return errors


def model() -> VisionLanguageModel:
    torch.manual_seed(0)
    network = tiny_vision_language_model(attention=partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=8))
    for layer in network.decoder.layers:
        layer.mlp = _mixture(tiny_layer_spec())
    network = network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    for layer in network.decoder.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return network


def pack(number: int) -> Batch:
    batch = tiny_batch(lengths=(9, 5 + number), grids=((4, 4), None), tail=3, seed=number)
    assert batch.vision is not None
    batch.vision.patches = batch.vision.patches.double()
    return batch


def loss_of(network: VisionLanguageModel, batch: Batch) -> Tensor:
    output = network(batch)
    loss = CrossEntropy()(output.hidden, network.decoder.lm_head.weight, batch.labels, batch.num_targets)
    others = sum(output.losses.values()) + balance_loss(output.routing) + router_z_loss(output.routing)
    return loss + others


def both_together(everyone: DeviceMesh, pairs: DeviceMesh) -> dict[str, float]:
    """Two packs, each divided between two ranks; experts divided among all four; every layer is computed again."""
    whole, network = model(), model()
    for number in range(2):
        loss_of(whole, pack(number)).backward()
    install_expert_parallel(network, everyone)
    install_sequence_parallel(network, pairs)
    loss_of(network, network.divide(pack(dist.get_rank() // 2))).backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    totals = summed({name: gradient for name, gradient in gradients.items() if not isinstance(gradient, DTensor)})
    errors = {}
    for name, parameter in whole.named_parameters():
        own, expected = totals.get(name), parameter.grad
        if own is None:
            own, expected = gradients[name].to_local(), expected.chunk(4)[everyone.get_local_rank()]
        errors[name] = error(own, expected) if expected.abs().max() > 1e-13 else float(own.abs().max())
    return errors


def with_fsdp(grid: DeviceMesh) -> dict[str, float]:
    """Experts divided between two ranks, each slice sharded over the two ranks that hold it: the whole tensor, read region by
    region as an export does, and gradients."""
    whole, layer = build("segments"), build("segments")
    install_expert_parallel(layer, grid["expert"])
    fully_shard(layer.experts, mesh=grid["expert_shard"]).set_gradient_divide_factor(1.0)
    layer.experts.set_force_sum_reduction_for_comms(True)
    assert isinstance(layer.experts.down_proj, DTensor)
    assert layer.experts.down_proj.to_local().shape == (2, 16, 32)
    source = NetworkSource(layer)
    name = next(name for name in source.tensors if "down_proj" in name)
    region = source.read(name, (3, 0, 0), (3, 16, 32))
    errors = {"region": error(region, whole.experts.down_proj.detach()[3:6])}
    for rank in range(4):
        run_layer(whole, rank, torch.float64, False)
    run_layer(layer, dist.get_rank(), torch.float64, True)
    for key in ("gate_up_proj", "down_proj"):
        gradient = getattr(layer.experts, key).grad
        errors[key] = error(gradient.full_tensor(), getattr(whole.experts, key).grad)
    return errors


def on_meta(mesh: DeviceMesh) -> None:
    """Divided before it has memory; filled afterwards."""
    with torch.device("meta"):
        layer = _mixture(tiny_layer_spec())
    install_expert_parallel(layer, mesh)
    down = layer.experts.down_proj
    assert isinstance(down, DTensor)
    assert (down.is_meta, tuple(down.shape), down.placements) == (True, (8, 16, 32), (Shard(0),))
    layer.to_empty(device="cpu")
    assert isinstance(layer.experts.down_proj, DTensor)
    assert layer.experts.down_proj.to_local().shape == (2, 16, 32)
    assert down.requires_grad


def refuse(mesh: DeviceMesh, grid: DeviceMesh) -> None:
    alone = _mixture(tiny_layer_spec())
    install_expert_parallel(alone, init_device_mesh("cpu", (4, 1), mesh_dim_names=("shard", "expert"))["expert"])
    assert not isinstance(alone.experts.down_proj, DTensor)
    with pytest.raises(ValueError, match="experts has 6 experts, which 4 ranks do not divide: choose a degree"):
        install_expert_parallel(MixtureOfExperts(tiny_layer_spec(), num_experts=6, active_experts=2), mesh)
    with pytest.raises(ValueError, match="no mixture of experts"):
        install_expert_parallel(nn.Linear(2, 2), mesh)
    with pytest.raises(ValueError, match="this one has 2"):
        install_expert_parallel(_mixture(tiny_layer_spec()), grid)


def everything(rank: int, world_size: int) -> dict[Any, dict[str, float]]:
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("expert_shard", "expert"))
    four = init_device_mesh("cpu", (4,))
    meshes = {2: grid["expert"], 4: four}
    found: dict[Any, dict[str, float]] = {
        (name, degree, recompute): compare_layer(name, meshes[degree], recompute) for name, degree, recompute in CASES
    }
    found["both"] = both_together(four, grid["expert"])
    found["fsdp"] = with_fsdp(grid)
    on_meta(four)
    refuse(four, grid)
    return found


@cache
def results() -> list[dict[Any, dict[str, float]]]:
    return run_distributed(everything, 4)


@pytest.mark.parametrize(("name", "degree", "recompute"), CASES, ids=lambda value: str(value))
def test_divided_experts_have_the_outputs_and_gradients_of_whole_ones(name: str, degree: int, recompute: bool) -> None:
    tolerance = 1e-10 if LAYERS[name][1] == torch.float64 else 1e-5
    for errors in results():
        assert errors[name, degree, recompute].keys() >= {"output", "input", "experts.down_proj"}
        assert not {key: size for key, size in errors[name, degree, recompute].items() if size > tolerance}


def test_divided_experts_in_divided_packs_of_recomputed_layers() -> None:
    for errors in results():
        assert "decoder.layers.1.self_attn.sa_indexer.q_proj.weight" in errors["both"]
        assert not {name: size for name, size in errors["both"].items() if size > 1e-10}


def test_slices_are_sharded_further_and_read_as_whole_tensors() -> None:
    for errors in results():
        assert errors["fsdp"]["region"] == 0.0
        assert max(errors["fsdp"].values()) < 1e-10
