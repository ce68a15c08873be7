"""Selection as one operation without a gradient, which activation checkpointing and ``torch.compile`` see as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from keyekit_kernels.dsa import reference

__all__ = ["IndexerTopK", "index_topk_operator", "keep_selections"]

_PRODUCTS = 2**24
"""Most products of queries and keys that exist at a time while sequences decode together: 64 MiB."""


class IndexerTopK(torch.autograd.Function):
    """The keys of each query by the lightning indexer; never differentiated.

    ``IndexerTopK.apply(query, key, gate, query_lengths, key_lengths, topk, implementation)`` returns ``[T, N]`` int32 rows of
    the packed keys. It runs the operator ``keyekit_dsa::index_topk``, so that :func:`keep_selections` can keep its result.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        gate: Tensor,
        query_lengths: Sequence[int],
        key_lengths: Sequence[int],
        topk: int,
        implementation: str,
    ) -> Tensor:
        """The selection; nothing is kept."""
        indices = index_topk_operator(query, key, gate, list(query_lengths), list(key_lengths), topk, implementation)
        ctx.mark_non_differentiable(indices)
        return indices

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[None, ...]:
        """No gradient."""
        return (None,) * 7


@torch.library.custom_op(
    "keyekit_dsa::index_topk",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor gate, SymInt[] query_lengths, SymInt[] key_lengths, SymInt topk, "
    "str implementation) -> Tensor",
)
def index_topk_operator(query, key, gate, query_lengths, key_lengths, topk, implementation) -> Tensor:
    """The operator behind :class:`IndexerTopK`, on checked tensors and with an implementation chosen."""
    if implementation == "triton":
        from keyekit_kernels.dsa import selection

        tensors = query.contiguous(), key.contiguous(), gate.contiguous()
        return selection.index_topk(*tensors, query_lengths, key_lengths, topk)
    return _select(query, key, gate, query_lengths, key_lengths, topk)


@index_topk_operator.register_fake
def _(query, key, gate, query_lengths, key_lengths, topk, implementation):
    return query.new_empty(query.shape[0], min(topk, max(key_lengths, default=0)), dtype=torch.int32)


def keep_selections() -> tuple[AbstractContextManager, AbstractContextManager]:
    """Let activation checkpointing keep the indices and recompute everything else.

    Selection is deterministic, so recomputing gives the same indices; keeping them saves the time, for 4 bytes a selected
    key.

    Example:
        >>> from torch.utils.checkpoint import checkpoint
        >>> checkpoint(torch.square, torch.ones(2), use_reentrant=False, context_fn=keep_selections)
        tensor([1., 1.])
    """
    return create_selective_checkpoint_contexts([torch.ops.keyekit_dsa.index_topk.default])


def _select(
    query: Tensor, key: Tensor, gate: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int], topk: int
) -> Tensor:
    """The definition, one sequence after the other, or many at a time while each decodes one token."""
    width = min(topk, max(key_lengths, default=0))
    if query_lengths and set(query_lengths) == {1}:
        return _select_one_each(query, key, gate, key_lengths, width)
    selected = torch.full((query.shape[0], width), -1, dtype=torch.int32, device=query.device)
    query_starts, key_starts = (0, *accumulate(query_lengths)), (0, *accumulate(key_lengths))
    for sequence, (num_queries, num_keys) in enumerate(zip(query_lengths, key_lengths, strict=True)):
        if num_queries == 0:
            continue
        rows = slice(query_starts[sequence], query_starts[sequence] + num_queries)
        start = key_starts[sequence]
        scores = reference.indexer_scores(query[rows], key[start : start + num_keys], gate[rows])
        visible = torch.arange(num_keys - num_queries + 1, num_keys + 1, device=query.device)
        local = reference.select_topk(scores, visible, topk)
        selected[rows, : local.shape[1]] = torch.where(local < 0, local, local + start)
    return selected


def _select_one_each(query: Tensor, key: Tensor, gate: Tensor, key_lengths: Sequence[int], width: int) -> Tensor:
    """The same for one query of each sequence, whose keys are padded to the longest sequence of a group."""
    longest = max(key_lengths)
    lengths = torch.tensor(key_lengths, device=query.device)
    starts = lengths.cumsum(0) - lengths
    place = torch.arange(longest, device=query.device)
    selected = []
    for group in torch.arange(len(key_lengths), device=query.device).split(
        max(_PRODUCTS // (longest * query.shape[1]), 1)
    ):
        rows = (starts[group, None] + place).clamp(max=key.shape[0] - 1)
        scores = reference.indexer_scores_of_pairs(query[group], key[rows], gate[group])
        local = reference.select_topk(scores, lengths[group], width)
        selected.append(torch.where(local < 0, local, local + starts[group, None].to(torch.int32)))
    return torch.cat(selected)
