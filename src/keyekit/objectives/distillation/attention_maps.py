"""Attention distributions of a student are matched to those of a teacher, without a matrix of all pairs of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from keyekit.batch import Segments
from keyekit.objectives.distillation.base import DistillationOutput
from keyekit.objectives.distillation.divergences import forward_kl

__all__ = ["AttentionMatching", "QueriesAndKeys"]


@dataclass(slots=True, kw_only=True)
class QueriesAndKeys:
    """What one layer's attention is made of, after rotation.

    Args:
        queries: ``[T, H, K]``.
        keys: ``[T, G, K]``; H is a multiple of G.
        scale: Factor on their products; ``K ** -0.5`` by default.
    """

    queries: Tensor
    keys: Tensor
    scale: float | None = None


class AttentionMatching(nn.Module):
    """Mean over queries of ``KL(teacher's attention || student's)``, causal, within each sequence (MiniLM, arXiv:2002.10957).

    Attention is computed for some queries at a time, and again in the backward pass.

    Args:
        heads: ``each`` compares head by head; ``mean`` the average over heads, for models with different numbers of them.
        query_chunk: Queries whose attention exists at a time.

    Raises:
        ValueError: If an argument is out of range or unknown.
    """

    def __init__(self, heads: Literal["each", "mean"] = "mean", query_chunk: int = 256) -> None:
        super().__init__()
        if heads not in ("each", "mean"):
            raise ValueError(f"heads={heads!r}: choose each or mean")
        if query_chunk < 1:
            raise ValueError(f"query_chunk={query_chunk} must be at least 1")
        self.heads = heads
        self.query_chunk = query_chunk

    def forward(
        self,
        student: QueriesAndKeys,
        teacher: QueriesAndKeys,
        segments: Segments,
        mask: Tensor,
        total: Tensor | float | None = None,
    ) -> DistillationOutput:
        """Compute the loss of one layer.

        Args:
            student: Queries and keys that learn.
            teacher: Those to follow; no gradient flows there.
            segments: The sequences of the pack.
            mask: ``[T]`` bool, the queries that count.
            total: Queries of the whole step; those of the mask by default.

        Raises:
            ValueError: If heads are to be compared one by one and their numbers differ.
        """
        counts = (student.queries.shape[1], teacher.queries.shape[1])
        if self.heads == "each" and counts[0] != counts[1]:
            raise ValueError(f"{counts[0]} heads of the student, {counts[1]} of the teacher: choose heads='mean'")
        frozen = QueriesAndKeys(queries=teacher.queries.detach(), keys=teacher.keys.detach(), scale=teacher.scale)
        summed, start = (
            student.queries.new_zeros((), dtype=torch.promote_types(student.queries.dtype, torch.float32)),
            0,
        )
        for length in segments.lengths:
            for first in range(start, start + length, self.query_chunk):
                last = min(first + self.query_chunk, start + length)
                each = checkpoint(self._divergences, student, frozen, start, first, last, use_reentrant=False)
                summed = summed + torch.where(mask[first:last], each, 0).sum()
            start += length
        loss = summed / (mask.sum().clamp(min=1) if total is None else total)
        return DistillationOutput(loss=loss, meters={"attention_divergence": loss.detach()})

    def _divergences(
        self, student: QueriesAndKeys, teacher: QueriesAndKeys, start: int, first: int, last: int
    ) -> Tensor:
        own, other = (_attention(model, start, first, last) for model in (student, teacher))
        if self.heads == "mean":
            own, other = (
                scores.logsumexp(0, keepdim=True) - torch.log(own.new_tensor(len(scores))) for scores in (own, other)
            )
        return forward_kl(own, other).mean(0)


def _attention(model: QueriesAndKeys, start: int, first: int, last: int) -> Tensor:
    """Log-attention ``[H, queries, keys]`` of the queries first..last to the keys from ``start`` on; hidden keys are -1e9."""
    queries, keys = model.queries[first:last], model.keys[start:last]
    kind = torch.promote_types(queries.dtype, torch.float32)
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    scale = model.scale if model.scale is not None else queries.shape[-1] ** -0.5
    scores = torch.einsum("qhk,shk->hqs", queries.to(kind), keys.to(kind)) * scale
    places = torch.arange(start, last, device=queries.device)
    hidden = places[None, :] > places[first - start :, None]
    # A finite floor: -inf less -inf would be no number, and exp(-1e9) is 0 all the same.
    return scores.masked_fill(hidden, -1e9).log_softmax(-1)
