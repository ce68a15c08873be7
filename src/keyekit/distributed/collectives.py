"""Rows that travel between ranks, with gradients that travel back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["exchange_rows", "gather_rows"]


def exchange_rows(rows: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Hand every rank its share of the rows; every rank of the group has to call it, also with no rows.

    The gradient takes the same way back. NCCL and gloo both have this collective, with uneven and with empty shares.

    Args:
        rows: ``[sum(send), …]``, those for the first rank first.
        send: Rows for each rank.
        receive: Rows from each rank.
        group: The ranks.

    Returns:
        ``[sum(receive), …]``, those from the first rank first.
    """
    received = _Exchange.apply(rows, tuple(send), tuple(receive), group)
    assert isinstance(received, Tensor)
    return received


def gather_rows(rows: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The rows of all ranks, in their order; the gradients of all copies add up, in float32 or wider, at their owner.

    Args:
        rows: ``[N, …]``, the same N on every rank.
        group: The ranks.

    Returns:
        ``[ranks * N, …]``.
    """
    gathered = _Gather.apply(rows, group)
    assert isinstance(gathered, Tensor)
    return gathered


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, send: tuple[int, ...], receive: tuple[int, ...], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.way = send, receive, group
        return _all_to_all(rows, send, receive, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        send, receive, group = ctx.way
        return _all_to_all(grad, receive, send, group), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        gathered = rows.new_empty(dist.get_world_size(group) * rows.shape[0], *rows.shape[1:])
        dist.all_gather_into_tensor(gathered, rows.contiguous(), group=group)
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32)).contiguous()
        own = wide.new_empty(wide.shape[0] // dist.get_world_size(ctx.group), *wide.shape[1:])
        dist.reduce_scatter_tensor(own, wide, group=ctx.group)
        return own.to(grad.dtype), None


def _all_to_all(rows: Tensor, send: Sequence[int], receive: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    received = rows.new_empty(sum(receive), *rows.shape[1:])
    dist.all_to_all_single(received, rows.contiguous(), list(receive), list(send), group=group)
    return received
