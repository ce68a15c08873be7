"""What this rank holds of a network, and reading it as a whole."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from keyekit.models.weights.network import NetworkSource, is_sharded, local_part, network_tensors, tied_names
from keyekit.models.weights.source import CheckpointError
from keyekit.testing.distributed import run_distributed
from keyekit.testing.tiny import tiny_vision_language_model

WHOLE = torch.arange(70.0).view(7, 10)


def _tied() -> nn.Module:
    network = tiny_vision_language_model()
    network.decoder.lm_head.weight = network.decoder.embed_tokens.weight
    return network


def test_shared_tensors_are_there_once() -> None:
    network = _tied()
    tensors = network_tensors(network)
    assert "lm_head.weight" not in tensors
    assert tensors["model.embed_tokens.weight"] is network.decoder.embed_tokens.weight
    assert tied_names(network) == {"lm_head.weight": "model.embed_tokens.weight"}
    assert len(tensors) == len(network.state_dict()) - 1


def test_an_ordinary_tensor_is_its_own_part() -> None:
    part = local_part("x", WHOLE)
    assert part.tensor is WHOLE
    assert part.offset == (0, 0)


def test_a_network_is_read_region_by_region_in_any_dtype() -> None:
    network = nn.Linear(3, 5)
    network.register_buffer("counts", torch.arange(4))
    assert torch.equal(NetworkSource(network).read("weight", (1, 2), (3, 1)), network.weight[1:4, 2:3])
    half = NetworkSource(network, torch.bfloat16)
    assert half.tensors["weight"].dtype == torch.bfloat16
    assert half.tensors["counts"].dtype == torch.int64
    assert torch.equal(half.read("weight", (0, 0), (5, 3)), network.weight.bfloat16())


def test_a_network_without_memory_has_nothing_to_read() -> None:
    source = NetworkSource(nn.Linear(2, 2, device="meta"))
    with pytest.raises(CheckpointError, match="on the meta device and has no values"):
        source.read("weight", (0, 0), (2, 2))


def _parts(rank: int, world_size: int) -> list:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    found = []
    for placements in ([Replicate(), Shard(0)], [Replicate(), Shard(1)], [Shard(0), Shard(1)], [Shard(0), Shard(0)]):
        tensor = distribute_tensor(WHOLE, mesh, placements)
        part = local_part("x", tensor)
        network = nn.Module()
        network.weight = nn.Parameter(tensor)
        assert is_sharded(network)
        whole = NetworkSource(network).read("weight", (0, 0), (7, 10))
        found.append((part.offset, part.tensor.clone(), whole))
    partial = DTensor.from_local(WHOLE[:3], mesh, [Shard(0), Partial()])
    small = distribute_tensor(torch.arange(1.0), mesh, [Replicate(), Shard(0)])
    return [found, local_part("small", small).tensor.numel(), tuple(partial.shape)]


def test_parts_of_uneven_shards_lie_where_torch_put_them() -> None:
    results = run_distributed(_parts, 4)
    for found, _, _ in results:
        for (row, column), part, whole in found:
            assert torch.equal(part, WHOLE[row : row + part.shape[0], column : column + part.shape[1]])
            assert torch.equal(whole, WHOLE)
    for case in range(4):  # together they cover everything
        covered = torch.zeros_like(WHOLE)
        for found, _, _ in results:
            (row, column), part, _ = found[case]
            covered[row : row + part.shape[0], column : column + part.shape[1]] = 1
        assert covered.all()
    assert sorted(count for _, count, _ in results) == [0, 0, 1, 1]
