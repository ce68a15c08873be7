"""The meter that every sparse scheme reports: how much of what a token could see it does see."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from keyekit.nn.attention.base import LayerContext

__all__ = ["key_share", "real_segments"]


def real_segments(context: LayerContext) -> Iterator[tuple[int, int]]:
    """Queries and keys of every sequence but the tail that pads the pack."""
    queries = 0
    for length, keys in zip(context.segments.lengths, context.segments.key_lengths, strict=True):
        queries += length
        if queries > context.num_tokens:
            return
        yield length, keys


def key_share(context: LayerContext, pairs: Callable[[int, int], int], device: torch.device) -> Tensor:
    """Keys that the queries of all samples see over keys that they could see, by arithmetic on lengths.

    Args:
        context: Segments of the pack, and which of its tokens are real.
        pairs: Pairs of a query and a key it sees, from the number of queries and keys of a sequence.
        device: Where the scalar goes.
    """
    seen, visible = 0, 0
    for queries, keys in real_segments(context):
        seen += pairs(queries, keys)
        visible += queries * keys - queries * (queries - 1) // 2
    return torch.full((), seen / max(visible, 1), device=device)
