"""Rows between two ranks: where they arrive, and where their gradients go."""

from __future__ import annotations

from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor

from keyekit.distributed.collectives import exchange_rows, gather_rows
from keyekit.testing.distributed import run_distributed

SENT = ((1, 3), (2, 0))
"""Rows that each rank sends to each."""


def everything(rank: int, world_size: int) -> dict[str, Tensor]:
    group = dist.group.WORLD
    assert group is not None
    receive = [row[rank] for row in SENT]
    rows = (torch.arange(sum(SENT[rank]) * 2.0).view(-1, 2) + 100 * rank).requires_grad_()
    received = exchange_rows(rows.T.contiguous().T, SENT[rank], receive, group)  # also of rows that are not contiguous
    (received * (10 + torch.arange(len(received))[:, None])).sum().backward()
    empty = torch.zeros(0, 3, requires_grad=True)
    nothing = exchange_rows(empty, [0, 0], [0, 0], group)
    nothing.sum().backward()
    # 1 + 2**-9 is no bfloat16: adding up in it would lose the second rank.
    half = torch.full((2, 3), rank + 1.0, dtype=torch.bfloat16, requires_grad=True)
    gathered = gather_rows(half, group)
    (gathered * (1.0 if rank == 0 else 2.0**-7)).sum().backward()
    numbers = gather_rows(torch.tensor([[rank, -1]], dtype=torch.int32), group)
    assert rows.grad is not None
    assert empty.grad is not None
    assert half.grad is not None
    return {
        "received": received.detach(),
        "rows": rows.grad,
        "nothing": nothing.detach(),
        "empty": empty.grad,
        "gathered": gathered.detach(),
        "half": half.grad,
        "numbers": numbers,
    }


@cache
def results() -> list[dict[str, Tensor]]:
    return run_distributed(everything, 2)


def test_rows_arrive_in_the_order_of_the_ranks_and_gradients_go_back_the_same_way() -> None:
    first, second = results()
    assert first["received"].tolist() == [[0, 1], [100, 101], [102, 103]]
    assert second["received"].tolist() == [[2, 3], [4, 5], [6, 7]]
    assert first["rows"].tolist() == [[10, 10], [10, 10], [11, 11], [12, 12]]
    assert second["rows"].tolist() == [[11, 11], [12, 12]]


def test_nothing_can_be_exchanged_and_differentiated() -> None:
    for found in results():
        assert found["nothing"].shape == (0, 3)
        assert found["empty"].shape == (0, 3)


def test_gathered_rows_stand_in_the_order_of_the_ranks_and_the_gradients_of_all_copies_add_up() -> None:
    for found in results():
        assert found["gathered"][:, 0].tolist() == [1, 1, 2, 2]
        assert found["half"].dtype == torch.bfloat16
        assert found["half"].float().unique().tolist() == [1 + 2.0**-7]
        assert found["numbers"].tolist() == [[0, -1], [1, -1]]
