"""What routers have in common: logits in float32, and the raw sums that describe a routing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.moe.base import RouterStatistics, SequenceStatistics

__all__ = ["normalized", "routing_statistics", "token_logits"]


def token_logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """``[T, E]`` of ``hidden [T, D]`` in float32, also under autocast: rounded logits send tokens to other experts.

    Float64 stays float64, so that gradients can be checked.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return functional.linear(hidden.to(dtype), weight.to(dtype))


def normalized(weights: Tensor) -> Tensor:
    """Divide each row by its sum; a row of zeros stays zero."""
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def routing_statistics(
    probabilities: Tensor,
    experts: Tensor,
    num_tokens: int | None,
    *,
    logits: Tensor | None = None,
    segments: Segments | None = None,
) -> RouterStatistics:
    """Sum up a routing over its real tokens.

    Args:
        probabilities: ``[T, E]``.
        experts: ``[T, A]`` int64; -1 is no visit.
        num_tokens: Leading tokens to count; all by default.
        logits: ``[T, E]``, if the router has any.
        segments: Sequences of the pack, for sums of each.
    """
    num_tokens = probabilities.shape[0] if num_tokens is None else num_tokens
    probabilities, experts = probabilities[:num_tokens], experts[:num_tokens]
    sequences = None if segments is None else _per_sequence(probabilities, experts, segments)
    return RouterStatistics(
        probabilities=probabilities.sum(dim=0) if sequences is None else sequences.probabilities.sum(dim=0),
        counts=_visits(experts, probabilities)[0] if sequences is None else sequences.counts.sum(dim=0),
        num_tokens=num_tokens,
        squared_logsumexp=None if logits is None else logits[:num_tokens].logsumexp(dim=-1).square().sum(),
        sequences=sequences,
    )


def _per_sequence(probabilities: Tensor, experts: Tensor, segments: Segments) -> SequenceStatistics:
    """The sums segment by segment, without reading anything on the host."""
    offsets = segments.offsets.long()
    token = torch.arange(probabilities.shape[0], device=probabilities.device)
    # Empty segments share their offset with the next one, which is the one that a token at this place belongs to.
    owner = torch.searchsorted(offsets[1:], token, right=True)
    sums = probabilities.new_zeros(len(segments), probabilities.shape[1]).index_add(0, owner, probabilities)
    return SequenceStatistics(
        probabilities=sums,
        counts=_visits(experts, probabilities, owner, len(segments)),
        num_tokens=offsets.clamp(max=probabilities.shape[0]).diff().to(probabilities.dtype),
    )


def _visits(experts: Tensor, like: Tensor, owner: Tensor | None = None, rows: int = 1) -> Tensor:
    """``[rows, E]`` visits of each expert, those of token ``t`` in row ``owner[t]``; -1 counts nowhere."""
    num_experts = like.shape[1]
    bins = experts if owner is None else torch.where(experts < 0, experts, experts + owner[:, None] * num_experts)
    bins = bins.flatten() + 1  # no visit becomes bin 0, which is cut off
    ones = torch.ones_like(bins, dtype=like.dtype)
    return like.new_zeros(rows * num_experts + 1).index_add_(0, bins, ones)[1:].view(rows, num_experts)
