"""Tensors go round in a circle of processes."""

import torch
import torch.distributed as dist

from keyekit.distributed.ring import Ring
from keyekit.testing.distributed import run_distributed


def _go_round(rank: int, world_size: int) -> list[list[int]]:
    ring, subset = Ring(), dist.new_group([0, 2])
    number, name = torch.tensor([rank]), torch.full((2,), 10.0 * rank)
    seen = []
    for _ in range(world_size):
        finish = ring.start(number, name)
        number, name = finish()
        seen.append([int(number), int(name[1])])
    if rank != 1:  # the circle of a part of the ranks
        (other,) = Ring(subset).start(torch.tensor([rank]))()
        seen.append([int(other), -1])
    return seen


def test_everything_passes_everybody_and_comes_home() -> None:
    first, second, third = run_distributed(_go_round, 3)
    assert first == [[2, 20], [1, 10], [0, 0], [2, -1]]
    assert second == [[0, 0], [2, 20], [1, 10]]
    assert third == [[1, 10], [0, 0], [2, 20], [0, -1]]


def _alone(rank: int, world_size: int) -> tuple[int, bool]:
    ring, tensor = Ring(), torch.ones(3)
    return ring.size, ring.start(tensor)()[0] is tensor


def test_one_rank_is_its_own_neighbour() -> None:
    assert run_distributed(_alone, 1) == [(1, True)]
