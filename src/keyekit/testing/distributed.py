"""Run a function in several processes that talk to each other, without a GPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["run_distributed"]


def run_distributed(function: Callable[..., Any], world_size: int, *arguments: Any, backend: str = "gloo") -> list[Any]:
    """Call ``function(rank, world_size, *arguments)`` in ``world_size`` processes of one group.

    Args:
        function: Importable by name (the processes are spawned); its result must be picklable.
        world_size: Number of processes.
        *arguments: Passed on; must be picklable.
        backend: Communication library; ``gloo`` needs no GPU.

    Returns:
        The results by rank.

    Raises:
        torch.multiprocessing.ProcessRaisedException: If the function raises in any process; the message has its traceback.
    """
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    spawned = mp.spawn(
        _work, (world_size, _free_port(), backend, function, arguments, results), nprocs=world_size, join=False
    )
    assert spawned is not None
    collected: dict[int, Any] = {}
    while len(collected) < world_size:
        while not results.empty():
            rank, result = results.get()
            collected[rank] = result
        if spawned.join(timeout=0.1):
            while not results.empty():
                rank, result = results.get()
                collected[rank] = result
            break
    while not spawned.join(timeout=1.0):
        continue
    return [collected[rank] for rank in range(world_size)]


def _work(
    rank: int, world_size: int, port: int, backend: str, function: Callable[..., Any], arguments: tuple, results: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    dist.init_process_group(backend, rank=rank, world_size=world_size)
    try:
        results.put((rank, function(rank, world_size, *arguments)))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
