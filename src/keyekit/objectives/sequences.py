"""Sums and means over the sequences of a pack, and the three ways to average a loss over its tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from keyekit.batch import Segments

__all__ = ["Normalisation", "average", "effective_count", "sequence_means", "sequence_sums", "spread"]

Normalisation = Literal["token", "sequence", "fixed"]
"""What every token of a loss is divided by.

- ``token``: the tokens of all sequences; long sequences weigh more.
- ``sequence``: the tokens of its own sequence, then the number of sequences; a token of a long sequence weighs less.
- ``fixed``: one constant length, then the number of sequences; every token weighs the same whatever is in the batch.
"""


def sequence_ids(segments: Segments) -> Tensor:
    """Number of the segment that each packed token belongs to, ``[T]`` int64; nothing synchronises."""
    offsets = segments.offsets.long()
    each = torch.arange(len(segments), device=offsets.device)
    return each.repeat_interleave(offsets.diff(), output_size=segments.total)


def sequence_sums(values: Tensor, segments: Segments) -> Tensor:
    """Sum of the values of each sequence; 0 for an empty one.

    Args:
        values: ``[T]``.
        segments: The B sequences of the pack.

    Returns:
        ``[B]`` of the same dtype.

    Example:
        >>> sequence_sums(torch.tensor([1.0, 2.0, 4.0]), Segments.of([2, 0, 1])).tolist()
        [3.0, 0.0, 4.0]
    """
    if values.shape != (segments.total,):
        raise ValueError(f"values have the shape {tuple(values.shape)}, the segments hold {segments.total} tokens")
    return values.new_zeros(len(segments)).index_add(0, sequence_ids(segments), values)


def sequence_means(values: Tensor, mask: Tensor, segments: Segments) -> Tensor:
    """Mean of the masked values of each sequence, ``[B]``; 0 for a sequence without any.

    Example:
        >>> mask = torch.tensor([False, True, True])
        >>> sequence_means(torch.tensor([9.0, 2.0, 4.0]), mask, Segments.of([3, 0])).tolist()
        [3.0, 0.0]
    """
    counts = sequence_sums(mask.to(values.dtype), segments)
    return sequence_sums(torch.where(mask, values, 0), segments) / counts.clamp(min=1)


def spread(values: Tensor, segments: Segments) -> Tensor:
    """Hand each sequence's value to all of its tokens: ``[B]`` to ``[T]``."""
    if values.shape != (len(segments),):
        raise ValueError(f"values have the shape {tuple(values.shape)}, there are {len(segments)} segments")
    return values[sequence_ids(segments)]


def effective_count(mask: Tensor, segments: Segments, normalisation: Normalisation) -> Tensor:
    """What a batch counts as under a normalisation: its masked tokens, or its sequences with at least one of them.

    Add it up over the ranks and packs of a step and hand the sum to :func:`average` as ``total``.

    Args:
        mask: ``[T]`` bool.
        segments: The sequences of the pack; one without a masked token, such as the tail, is none.
        normalisation: See :data:`Normalisation`.

    Returns:
        Scalar float32.
    """
    _check(normalisation)
    if normalisation == "token":
        return mask.sum().float()
    return (sequence_sums(mask.float(), segments) > 0).sum().float()


def average(
    values: Tensor,
    mask: Tensor,
    segments: Segments,
    normalisation: Normalisation = "token",
    fixed_length: int | None = None,
    total: Tensor | float | None = None,
) -> Tensor:
    """Average the masked values of a pack.

    Args:
        values: ``[T]``; what lies outside the mask does not matter, not even if it is no number.
        mask: ``[T]`` bool.
        segments: The sequences of the pack.
        normalisation: See :data:`Normalisation`.
        fixed_length: The constant of ``fixed``.
        total: :func:`effective_count` of the whole step, so that the averages of its packs add up to that of the step;
            this pack's by default.

    Returns:
        Scalar; 0, with a gradient of 0, if nothing is masked.

    Raises:
        ValueError: If the normalisation is unknown, or ``fixed`` and ``fixed_length`` do not come together.

    Example:
        >>> values, mask, two = torch.tensor([1.0, 1.0, 1.0, 5.0]), torch.ones(4, dtype=torch.bool), Segments.of([3, 1])
        >>> [average(values, mask, two, kind).item() for kind in ("token", "sequence")]
        [2.0, 3.0]
        >>> average(values, mask, two, "fixed", fixed_length=4).item()
        1.0
    """
    _check(normalisation)
    if (normalisation == "fixed") != (fixed_length is not None):
        raise ValueError(
            f"normalisation={normalisation!r} with fixed_length={fixed_length}: 'fixed' needs a length, the others have none"
        )
    if total is None:
        total = effective_count(mask, segments, normalisation).clamp(min=1)
    if normalisation == "sequence":
        return sequence_means(values, mask, segments).sum() / total
    return torch.where(mask, values, 0).sum() / (total * (fixed_length or 1))


def _check(normalisation: str) -> None:
    if normalisation not in ("token", "sequence", "fixed"):
        raise ValueError(f"normalisation={normalisation!r}: choose token, sequence or fixed")
