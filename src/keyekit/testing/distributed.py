"""Run a function in several processes that talk to each other, without a GPU."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["run_distributed"]

_IMPORTED = ("keyekit.tasks.language_modeling", "keyekit.testing.tiny", "torch.distributed.fsdp")
"""What the server imports: nearly all that processes need."""


def run_distributed(function: Callable[..., Any], world_size: int, *arguments: Any, backend: str = "gloo") -> list[Any]:
    """Call ``function(rank, world_size, *arguments)`` in ``world_size`` processes of one group.

    Where the system can do that, processes are copies of a server that has imported torch, Lightning and keyekit once: the
    second call starts at once.

    Args:
        function: Importable by name (the processes inherit nothing of the caller's); its result must be picklable.
        world_size: Number of processes.
        *arguments: Passed on; must be picklable.
        backend: Communication library; ``gloo`` needs no GPU.

    Returns:
        The results by rank.

    Raises:
        RuntimeError: If the function raises in any process; the message has the traceback of the first one that did.
        torch.multiprocessing.ProcessExitedException: If a process dies.
    """
    method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
    context = mp.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(list(_IMPORTED))
    outcomes = context.SimpleQueue()
    job = (world_size, _free_port(), backend, function, arguments, outcomes)
    spawned = mp.start_processes(_work, job, nprocs=world_size, join=False, start_method=method)
    assert spawned is not None
    results: dict[int, Any] = {}
    running = True
    while running or not outcomes.empty():
        running = running and not spawned.join(timeout=0.1)
        while not outcomes.empty():
            rank, result, problem = outcomes.get()
            if problem:  # the first to report is the cause; the others fail because it is gone
                for process in filter(None, spawned.processes):
                    process.terminate()
                raise RuntimeError(f"rank {rank} of {world_size}:\n{problem}")
            results[rank] = pickle.loads(result)
    return [results[rank] for rank in range(world_size)]


def _work(
    rank: int, world_size: int, port: int, backend: str, function: Callable[..., Any], arguments: tuple, outcomes: Any
) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world_size))
    dist.init_process_group(backend, rank=rank, world_size=world_size)
    try:
        result = function(rank, world_size, *arguments)
        # As plain bytes: torch would share a tensor's memory, which is gone if this process ends before it is read.
        outcomes.put((rank, pickle.dumps(result), ""))
        dist.barrier()
    except Exception:
        outcomes.put((rank, None, traceback.format_exc()))
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
