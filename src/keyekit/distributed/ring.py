"""Ranks in a circle: everybody hands tensors to the next rank and takes those of the previous one."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Ring"]


class Ring:
    """The ranks of a process group in their order, the last one before the first.

    Args:
        group: The ranks; all by default.

    Attributes:
        size: Number of ranks.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group if group is not None else dist.group.WORLD
        self.size = dist.get_world_size(self.group)
        self._rank = dist.get_rank(self.group)

    def start(self, *tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """Begin to hand tensors to the next rank; every rank has to.

        Args:
            *tensors: Contiguous, of the same shapes and dtypes on all ranks, unchanged until the result is called.

        Returns:
            Waits, and returns what the previous rank handed over.
        """
        if self.size == 1:
            return lambda: tensors
        received = tuple(torch.empty_like(tensor) for tensor in tensors)
        operations = [
            operation
            for own, other in zip(tensors, received, strict=True)
            for operation in (
                dist.P2POp(dist.isend, own, group=self.group, group_peer=(self._rank + 1) % self.size),
                dist.P2POp(dist.irecv, other, group=self.group, group_peer=(self._rank - 1) % self.size),
            )
        ]
        pending = dist.batch_isend_irecv(operations)

        def finish() -> tuple[Tensor, ...]:
            for request in pending:
                request.wait()
            return received

        return finish
