"""Plain-PyTorch definition of DeepSeek Sparse Attention with grouped queries.

Every function here is differentiable by autograd, runs in any floating dtype (float64 included) on any device, and is what
a faster implementation is tested against. Letters: T queries, S keys, H query heads, G key/value groups, K head width,
I indexer heads, N selected keys. Indices are int32, ascending, with -1 in the unused tail.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "attention_over_selection",
    "attention_target",
    "indexer_scores",
    "indexer_scores_of_pairs",
    "kl_over_selection",
    "scores_at",
    "select_topk",
]


def indexer_scores(query: Tensor, key: Tensor, gate: Tensor) -> Tensor:
    """Score every key for every query with the lightning indexer.

    ``score[t, s] = K_I ** -0.5 * sum_j gate[t, j] * relu(query[t, j] . key[s])`` in float32 or wider.

    Args:
        query: ``[T, I, indexer_dim]`` normalised and rotated indexer queries.
        key: ``[S, indexer_dim]`` the one shared indexer key per token.
        gate: ``[T, I]`` raw head weights, of either sign.

    Returns:
        ``[T, S]`` scores.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    products = torch.einsum("tid,sd->tis", query.to(wide), key.to(wide)).relu()
    # Keye-VL-2.0 sheet 4.1 item 6: scaled by indexer_dim ** -0.5 and by no power of the number of heads.
    return torch.einsum("tis,ti->ts", products, gate.to(wide)) * query.shape[-1] ** -0.5


def indexer_scores_of_pairs(query: Tensor, key: Tensor, gate: Tensor) -> Tensor:
    """:func:`indexer_scores` where every query has keys of its own.

    Args:
        query: ``[T, I, indexer_dim]``.
        key: ``[T, S, indexer_dim]``.
        gate: ``[T, I]``.

    Returns:
        ``[T, S]`` scores.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    products = torch.einsum("tid,tsd->tis", query.to(wide), key.to(wide)).relu()
    return torch.einsum("tis,ti->ts", products, gate.to(wide)) * query.shape[-1] ** -0.5


def select_topk(scores: Tensor, visible: Tensor, topk: int) -> Tensor:
    """Choose the best keys of each query exactly and deterministically.

    Keys are ordered by score (descending), then by index (ascending); NaN counts as minus infinity.

    Args:
        scores: ``[T, S]``.
        visible: ``[T]`` number of leading keys that each query may use.
        topk: Largest number of keys to select.

    Returns:
        ``[T, min(topk, S)]`` int32 indices into the keys, ascending, -1 where a query sees fewer keys.

    Example:
        >>> select_topk(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([3]), topk=2).tolist()
        [[1, 2]]
    """
    num_keys = scores.shape[1]
    topk = min(topk, num_keys)
    index = torch.arange(num_keys, device=scores.device)
    hidden = index[None, :] >= visible[:, None]
    ordered = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).masked_fill(hidden, -torch.inf)
    # A stable sort keeps the lower index first among equals, and hidden keys (the highest indices) behind visible -inf ones.
    best = ordered.sort(dim=1, descending=True, stable=True).indices[:, :topk]
    best = best.masked_fill(best >= visible[:, None], num_keys).sort(dim=1).values
    return best.masked_fill(best == num_keys, -1).to(torch.int32)


def attention_over_selection(
    query: Tensor, key: Tensor, value: Tensor, indices: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Grouped-query attention in which each query sees only its selected keys.

    All groups share one selection per query.

    Args:
        query: ``[T, H, K]``.
        key: ``[S, G, K]``.
        value: ``[S, G, K]``.
        indices: ``[T, N]`` int32 rows of ``key``, -1 for none.
        scale: Factor on the dot products, usually ``K ** -0.5``.

    Returns:
        Output ``[T, H, K]`` in the query's dtype and natural log-sum-exp ``[T, H]``. A query without any key gives zeros and
        a log-sum-exp of -1e30.
    """
    probabilities, log_normaliser = _probabilities(query, key, indices, scale)
    gathered = value[indices.clamp(min=0).long()].to(probabilities.dtype)
    output = torch.einsum("tgjn,tngk->tgjk", probabilities, gathered)
    return output.reshape(query.shape).to(query.dtype), log_normaliser


def attention_target(query: Tensor, key: Tensor, indices: Tensor, scale: float) -> Tensor:
    """Mean over heads of the attention each query pays to its selected keys: what the indexer should imitate.

    Returns:
        ``[T, N]`` probabilities that sum to one over the selection (all zero for a query without keys).
    """
    return _probabilities(query, key, indices, scale)[0].mean(dim=(1, 2))


def scores_at(query: Tensor, key: Tensor, gate: Tensor, indices: Tensor) -> Tensor:
    """Indexer scores of the selected keys alone.

    Returns:
        ``[T, N]``; entries whose index is -1 are meaningless.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    gathered = key[indices.clamp(min=0).long()].to(wide)
    products = torch.einsum("tid,tnd->tin", query.to(wide), gathered).relu()
    return torch.einsum("tin,ti->tn", products, gate.to(wide)) * query.shape[-1] ** -0.5


def kl_over_selection(scores: Tensor, target: Tensor, indices: Tensor) -> Tensor:
    """KL divergence from the target to the softmax of the indexer's scores, both over the selected keys.

    Args:
        scores: ``[T, N]`` from :func:`scores_at`.
        target: ``[T, N]`` from :func:`attention_target`, treated as a constant.
        indices: ``[T, N]`` int32, -1 for none.

    Returns:
        ``[T]`` divergences in nats, zero for a query without keys.
    """
    unused = indices < 0
    log_student = scores.masked_fill(unused, -1e30).log_softmax(dim=1)
    target = target.detach()
    return (torch.xlogy(target, target) - target * log_student.masked_fill(unused, 0.0)).sum(dim=1)


def _probabilities(query: Tensor, key: Tensor, indices: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax over the selection: ``[T, G, H/G, N]`` and its log-sum-exp ``[T, H]``."""
    num_queries, num_heads, width = query.shape
    groups = key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    unused = (indices < 0)[:, None, None, :]
    grouped = query.to(wide).view(num_queries, groups, num_heads // groups, width)
    gathered = key[indices.clamp(min=0).long()].to(wide)
    logits = torch.einsum("tgjk,tngk->tgjn", grouped, gathered) * scale
    logits = logits.masked_fill(unused, -1e30)  # finite, so that a query without keys stays free of NaN
    log_normaliser = logits.logsumexp(dim=-1)
    probabilities = (logits - log_normaliser[..., None]).exp().masked_fill(unused, 0.0)
    return probabilities, log_normaliser.reshape(num_queries, num_heads)
