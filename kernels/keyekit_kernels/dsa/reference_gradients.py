"""Closed-form gradients of DeepSeek Sparse Attention in plain PyTorch, without autograd.

They say what every backward kernel computes, and equal the derivatives of :mod:`keyekit_kernels.dsa.reference` to rounding.
The divergences take their queries in chunks, so that their memory grows with the number of tokens and not with its square.
Letters as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from keyekit_kernels.dsa import reference

__all__ = ["attention_gradients", "causal_selection", "dense_kl", "kl_gradients", "sparse_kl"]


def causal_selection(
    query_lengths: Sequence[int], key_lengths: Sequence[int], device: torch.device | str | None = None
) -> Tensor:
    """Every key that each query of packed sequences may see, as if it had been selected.

    The queries of a sequence are its last positions.

    Args:
        query_lengths: Queries of each sequence.
        key_lengths: Keys of each sequence.
        device: Where the result lives.

    Returns:
        ``[T, N]`` int32 rows of the packed keys, ascending, -1 tail, with N the length of the longest sequence.

    Raises:
        ValueError: If a sequence has more queries than keys.

    Example:
        >>> causal_selection([2, 1], [2, 3]).tolist()
        [[0, -1, -1], [0, 1, -1], [2, 3, 4]]
    """
    width = max(key_lengths, default=0)
    rows = [torch.empty(0, width, dtype=torch.int32, device=device)]
    for _, visible, key_start in _sequences(query_lengths, key_lengths):
        rows.append(_leading_keys(visible, key_start, width, device))
    return torch.cat(rows)


def attention_gradients(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_normaliser: Tensor,
    indices: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`~keyekit_kernels.dsa.reference.attention_over_selection`.

    With P = exp(logit - log_normaliser), dP = dO . V and delta = dO . O, the logits receive P (dP - delta).

    Args:
        grad_output: ``[T, H, K]``.
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        value: ``[S, G, K]``.
        output: ``[T, H, K]`` that the forward pass returned.
        log_normaliser: ``[T, H]`` that the forward pass returned.
        indices: ``[T, N]`` int32 rows of ``key``, -1 for none.
        scale: Factor on the dot products.

    Returns:
        Gradients of query, key and value in their dtypes.
    """
    num_queries, num_heads, width = query.shape
    groups = key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    by_group = (num_queries, groups, num_heads // groups, width)
    unused = indices < 0
    rows = indices.clamp(min=0).long()
    grouped, grad = query.to(wide).view(by_group), grad_output.to(wide).view(by_group)
    gathered_key, gathered_value = key[rows].to(wide), value[rows].to(wide)
    logits = torch.einsum("tgjk,tngk->tgjn", grouped, gathered_key) * scale
    weights = (logits - log_normaliser.view(by_group[:3])[..., None]).exp().masked_fill(unused[:, None, None], 0.0)
    grad_weights = torch.einsum("tgjk,tngk->tgjn", grad, gathered_value)
    delta = (grad * output.to(wide).view(by_group)).sum(dim=-1, keepdim=True)
    grad_logits = weights * (grad_weights - delta) * scale
    grad_query = torch.einsum("tgjn,tngk->tgjk", grad_logits, gathered_key).reshape(query.shape)
    grad_key = _sum_by_key(torch.einsum("tgjn,tgjk->tngk", grad_logits, grouped), rows, key.shape[0])
    grad_value = _sum_by_key(torch.einsum("tgjn,tgjk->tngk", weights, grad), rows, key.shape[0])
    return grad_query.to(query.dtype), grad_key.to(key.dtype), grad_value.to(value.dtype)


def kl_gradients(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    target: Tensor,
    indices: Tensor,
    row_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the sum of :func:`~keyekit_kernels.dsa.reference.kl_over_selection` by what makes the indexer's scores.

    A score receives its student's probability minus the target (dsa-kernels sheet 2.2).

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        target: ``[T, N]`` from :func:`~keyekit_kernels.dsa.reference.attention_target`.
        indices: ``[T, N]`` int32 rows of ``index_key``, -1 for none.
        row_weight: ``[T]`` factors on the divergences; all one if left out.

    Returns:
        Gradients of index query, index key and gate in float32 or wider.
    """
    wide = torch.promote_types(index_query.dtype, torch.float32)
    unused = indices < 0
    rows = indices.clamp(min=0).long()
    query, gathered = index_query.to(wide), index_key[rows].to(wide)
    gate = gate.to(wide) * index_query.shape[-1] ** -0.5  # Keye-VL-2.0 sheet 4.1 item 6
    products = torch.einsum("tid,tnd->tin", query, gathered)
    scores = torch.einsum("tin,ti->tn", products.relu(), gate).masked_fill(unused, -1e30)
    difference = (target.sum(dim=1, keepdim=True) * scores.softmax(dim=1) - target).masked_fill(unused, 0.0)
    if row_weight is not None:
        difference = difference * row_weight[:, None]
    grad_gate = torch.einsum("tn,tin->ti", difference, products.relu()) * index_query.shape[-1] ** -0.5
    slope = difference[:, None] * (products > 0) * gate[..., None]
    grad_query = torch.einsum("tin,tnd->tid", slope, gathered)
    grad_key = _sum_by_key(torch.einsum("tin,tid->tnd", slope, query), rows, index_key.shape[0])
    return grad_query, grad_key, grad_gate


def sparse_kl(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    indices: Tensor,
    scale: float,
    row_weight: Tensor | None = None,
    chunk: int = 256,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Divergence of the indexer from the attention over selected keys, with its gradients.

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries.
        key: ``[S, G, K]`` attention keys.
        indices: ``[T, N]`` int32 rows of the keys, -1 for none.
        scale: Factor on the attention's dot products.
        row_weight: ``[T]`` factors on the divergences; all one if left out.
        chunk: Queries taken at a time.

    Returns:
        ``[T]`` weighted divergences in nats, and the gradients of their sum by index query, index key and gate.
    """
    sums = _Sums(index_query, index_key, gate, query, key, scale, row_weight)
    for start in range(0, query.shape[0], chunk):
        rows = slice(start, start + chunk)
        sums.add(rows, indices[rows])
    return sums.loss, sums.gradients


def dense_kl(
    index_query: Tensor,
    index_key: Tensor,
    gate: Tensor,
    query: Tensor,
    key: Tensor,
    query_lengths: Sequence[int],
    key_lengths: Sequence[int],
    scale: float,
    row_weight: Tensor | None = None,
    chunk: int = 256,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Divergence of the indexer from dense causal attention, with its gradients: the indexer's warm-up.

    Args:
        index_query: ``[T, I, indexer_dim]``.
        index_key: ``[S, indexer_dim]``.
        gate: ``[T, I]``.
        query: ``[T, H, K]`` attention queries.
        key: ``[S, G, K]`` attention keys.
        query_lengths: Queries of each sequence, its last positions; rows behind their sum are left out.
        key_lengths: Keys of each sequence.
        scale: Factor on the attention's dot products.
        row_weight: ``[T]`` factors on the divergences; all one if left out.
        chunk: Queries taken at a time.

    Returns:
        ``[T]`` weighted divergences in nats, and the gradients of their sum by index query, index key and gate.
    """
    sums = _Sums(index_query, index_key, gate, query, key, scale, row_weight)
    for first, visible, key_start in _sequences(query_lengths, key_lengths):
        for start in range(0, len(visible), chunk):
            part = visible[start : start + chunk]
            rows = slice(first + start, first + start + len(part))
            sums.add(rows, _leading_keys(part, key_start, part[-1], query.device))
    return sums.loss, sums.gradients


class _Sums:
    """Divergences and gradients, filled chunk by chunk."""

    def __init__(self, index_query, index_key, gate, query, key, scale: float, row_weight: Tensor | None) -> None:
        self.inputs, self.scale, self.row_weight = (index_query, index_key, gate, query, key), scale, row_weight
        wide = torch.promote_types(index_query.dtype, torch.float32)
        self.loss = query.new_zeros(query.shape[0], dtype=wide)
        index_query_sum, index_key_sum, gate_sum = (
            torch.zeros_like(tensor, dtype=wide) for tensor in (index_query, index_key, gate)
        )
        self.gradients = index_query_sum, index_key_sum, gate_sum

    @torch.no_grad()
    def add(self, rows: slice, indices: Tensor) -> None:
        """Take the queries ``rows``, whose keys are ``indices``."""
        index_query, index_key, gate, query, key = self.inputs
        weight = None if self.row_weight is None else self.row_weight[rows]
        target = reference.attention_target(query[rows], key, indices, self.scale)
        scores = reference.scores_at(index_query[rows], index_key, gate[rows], indices)
        loss = reference.kl_over_selection(scores, target, indices)
        self.loss[rows] = loss if weight is None else loss * weight
        by_query, by_key, by_gate = kl_gradients(index_query[rows], index_key, gate[rows], target, indices, weight)
        self.gradients[0][rows] = by_query
        self.gradients[1].add_(by_key)
        self.gradients[2][rows] = by_gate


def _sequences(query_lengths: Sequence[int], key_lengths: Sequence[int]) -> Iterator[tuple[int, range, int]]:
    """First query, number of keys that each query sees, and first key of every sequence."""
    first = key_start = 0
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        if queries > keys:
            raise ValueError(
                f"a sequence has {queries} queries and {keys} keys: queries are the last positions of their sequence"
            )
        yield first, range(keys - queries + 1, keys + 1), key_start
        first, key_start = first + queries, key_start + keys


def _leading_keys(visible: range, key_start: int, width: int, device: torch.device | str | None) -> Tensor:
    """``[len(visible), width]`` int32: that many keys from ``key_start`` on, then -1."""
    local = torch.arange(width, dtype=torch.int32, device=device)
    counts = torch.arange(visible.start, visible.stop, device=device)[:, None]
    return torch.where(local < counts, local + key_start, -1)


def _sum_by_key(contributions: Tensor, rows: Tensor, num_keys: int) -> Tensor:
    """Add ``contributions [T, N, …]`` up at the keys ``rows [T, N]``."""
    total = contributions.new_zeros(num_keys, *contributions.shape[2:])
    return total.index_add_(0, rows.flatten(), contributions.flatten(0, 1))
