from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from keyekit.testing.distributed import run_distributed


def add_ranks(rank: int, world_size: int, offset: int) -> float:
    value = torch.tensor(float(rank + offset))
    dist.all_reduce(value)
    return value.item()


def fail_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("rank one has a problem")


def test_processes_communicate_and_results_come_by_rank():
    assert run_distributed(add_ranks, 2, 10) == [21.0, 21.0]


def test_an_error_in_one_process_is_raised():
    with pytest.raises(RuntimeError, match=r"rank 1 of 2:[\s\S]*rank one has a problem"):
        run_distributed(fail_on_one, 2)


def a_tensor(rank: int, world_size: int) -> torch.Tensor:
    return torch.full((1000,), float(rank))


def test_tensors_outlive_the_process_that_made_them():
    assert [tensor.sum().item() for tensor in run_distributed(a_tensor, 2)] == [0.0, 1000.0]
