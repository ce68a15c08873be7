"""The indexer's divergence from dense causal attention in PyTorch: matrix products over chunks of queries, never L x L.

It computes what :func:`keyekit_kernels.dsa.reference_gradients.dense_kl` defines. That function gathers a copy of its keys for
every query, as a selection needs it; here all queries of a chunk read the same leading keys, so a product is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["dense_indexer_kl"]

_ELEMENTS = 2**24
"""Most numbers in a product of a chunk, 64 MiB of float32; a chunk has at least one query."""


def dense_indexer_kl(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    scale: float,
) -> Tensor:
    """Divergence of the indexer from dense causal attention, differentiable in the indexer's three tensors.

    The gradients of the sum are computed beside the divergences; a backward pass that weighs the rows differently computes
    them anew.

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries, a constant.
        key: ``[S, G, K]`` attention keys, a constant.
        query_lengths: Queries of each sequence, its last positions; rows behind their sum are padding and give zero.
        key_lengths: Keys of each sequence.
        scale: Factor on the attention's dot products.

    Returns:
        ``[T]`` divergences in nats, in float32 or wider.

    Raises:
        ValueError: If lengths and rows do not fit.
    """
    for name, lengths, rows in (("query_lengths", query_lengths, query), ("key_lengths", key_lengths, key)):
        if sum(lengths) > rows.shape[0]:
            raise ValueError(f"{name} sum to {sum(lengths)}, but there are {rows.shape[0]} rows")
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        if queries > keys:
            raise ValueError(
                f"a sequence has {queries} queries and {keys} keys: queries are the last positions of their sequence"
            )
    constants = (query.detach(), key.detach())
    return _DenseDivergence.apply(
        index_query, index_key, gate, constants, (query_lengths, key_lengths, scale), torch.is_grad_enabled()
    )


class _DenseDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, index_query, index_key, gate, constants, settings, grad_enabled: bool) -> Tensor:
        indexer = (index_query, index_key, gate)
        ctx.settings = settings
        loss, gradients = _divergence(indexer, constants, settings, None, grad_enabled and any(ctx.needs_input_grad))
        if gradients is not None:
            ctx.save_for_backward(*indexer, *gradients, *constants)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # unpacked once, as checkpointing demands
        indexer, gradients, constants = saved[:3], saved[3:6], saved[6:]
        factor = grad_loss[:1].sum()
        if grad_loss.numel() > 1 and grad_loss.stride(0) != 0:  # not one factor for all rows, as after sum() and mean()
            gradients, factor = _divergence(indexer, constants, ctx.settings, grad_loss, True)[1] or (), 1.0
        wanted = [(gradient * factor).to(tensor.dtype) for gradient, tensor in zip(gradients, indexer, strict=True)]
        return *wanted, None, None, None


@torch.no_grad()
def _divergence(
    indexer, constants, settings, row_weight: Tensor | None, need_gradients: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Divergences ``[T]``, and the gradients of their (weighted) sum by the indexer's tensors."""
    query_lengths, key_lengths, scale = settings
    wide = torch.promote_types(indexer[0].dtype, torch.float32)
    index_query, index_key, gate = (tensor.to(wide) for tensor in indexer)
    query, key = (tensor.to(wide) for tensor in constants)
    gate = gate * index_query.shape[-1] ** -0.5  # Keye-VL-2.0 sheet 4.1 item 6
    loss = query.new_zeros(query.shape[0])
    by_query, by_key, by_gate = (torch.zeros_like(tensor) for tensor in (index_query, index_key, gate))
    for rows, columns in _chunks(query_lengths, key_lengths, max(index_query.shape[1], query.shape[1])):
        target, hidden = _teacher(query[rows], key[columns], scale)
        positive = torch.einsum("tid,sd->tis", index_query[rows], index_key[columns]).relu_()
        scores = torch.einsum("tis,ti->ts", positive, gate[rows]).masked_fill(hidden, -1e30)
        log_student = scores.log_softmax(dim=-1)
        loss[rows] = (torch.xlogy(target, target) - target * log_student.masked_fill(hidden, 0.0)).sum(dim=-1)
        if not need_gradients:
            continue
        difference = log_student.exp() - target  # dsa-kernels sheet 2.2: dKL/dI
        if row_weight is not None:
            difference = difference * row_weight[rows, None]
        by_gate[rows] = torch.einsum("ts,tis->ti", difference, positive) * index_query.shape[-1] ** -0.5
        # In place: the largest tensor here.
        slope = positive.sign_().mul_(difference[:, None]).mul_(gate[rows, :, None])
        by_query[rows] = torch.einsum("tis,sd->tid", slope, index_key[columns])
        by_key[columns] += torch.einsum("tis,tid->sd", slope, index_query[rows])
    return loss, (by_query, by_key, by_gate) if need_gradients else None


def _teacher(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Mean over heads of the attention of the last positions ``[queries, keys]``, and which keys a query does not see."""
    queries, heads, _ = query.shape
    keys, groups, _ = key.shape
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=query.device).triu(keys - queries + 1)
    logits = torch.einsum("tgjk,sgk->gjts", query.unflatten(1, (groups, heads // groups)), key) * scale
    return logits.masked_fill(hidden, -torch.inf).softmax(dim=-1).mean(dim=(0, 1)), hidden


def _chunks(query_lengths: Sequence[int], key_lengths: Sequence[int], heads: int) -> Iterator[tuple[slice, slice]]:
    """Rows of some queries of a sequence, and of all keys up to the last one that they see."""
    first = key_start = 0
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        size = max(_ELEMENTS // (heads * max(keys, 1)), 1)
        for start in range(0, queries, size):
            stop = min(start + size, queries)
            yield slice(first + start, first + stop), slice(key_start, key_start + keys - queries + stop)
        first, key_start = first + queries, key_start + keys
