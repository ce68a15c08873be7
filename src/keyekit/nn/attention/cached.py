"""Dense attention through the cache: packed while reading the prompts, in place while adding single tokens."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.attention.base import LayerCache
from keyekit.nn.attention.segmented import segmented_attention

__all__ = ["attend_padded", "cached_attention"]


def cached_attention(query: Tensor, key: Tensor, value: Tensor, cache: LayerCache, segments: Segments) -> Tensor:
    """Store new keys and values, then attend causally to everything stored; equals attention over the whole sequences.

    Args:
        query: ``[T, H, K]`` queries of the new tokens.
        key: ``[T, G, K]`` their keys.
        value: ``[T, G, K]`` their values.
        cache: The layer's cache.
        segments: New tokens and stored tokens of each sequence.

    Returns:
        ``[T, H, K]``.
    """
    if segments.is_square or not cache.step.groups:
        key = cache.extend("key", key, segments)
        value = cache.extend("value", value, segments)
        return segmented_attention(query, key, value, segments, causal=True)
    cache.append("key", key)
    cache.append("value", value)
    parts = [
        attend_padded(part, cache.stored("key", group), cache.stored("value", group), group.mask)
        for part, group in zip(cache.step.split(query), cache.step.groups, strict=True)
    ]
    return cache.step.join(parts)


def attend_padded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one query per sequence over padded keys.

    The query heads of a group stand where queries usually stand: one product per group then reads each key once, and no
    key is repeated for the heads that share it.

    Args:
        query: ``[B, H, K]``.
        key: ``[B, G, S, K]``.
        value: ``[B, G, S, K]``.
        mask: ``[B, S]`` bool, true where a key may be seen; ``None`` if all may.

    Returns:
        ``[B, H, K]``.
    """
    folded = query.unflatten(1, (key.shape[1], -1))  # [B, G, H / G, K]
    allowed = None if mask is None else mask[:, None, None, :]
    return functional.scaled_dot_product_attention(folded, key, value, attn_mask=allowed).flatten(1, 2)
