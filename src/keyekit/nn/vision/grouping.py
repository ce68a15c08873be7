"""Packed patches to batches of equally shaped images and back, for towers that know only such batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["encode_by_shape"]


def encode_by_shape(
    patches: Tensor, grids: Sequence[tuple[int, int]], encode: Callable[[Tensor, tuple[int, int]], Tensor]
) -> Tensor:
    """Encode all grids of the same shape as one batch, so that nothing is padded and no grid sees another.

    Args:
        patches: ``[P, C, patch, patch]`` packed pixels.
        grids: ``(rows, columns)`` in patches of each image or frame.
        encode: Turns ``[N, rows * columns, C, patch, patch]`` and the shape into ``[N, rows * columns, dim]``.

    Returns:
        ``[P, dim]`` features in the order of the patches.

    Raises:
        ValueError: If the grids do not hold the patches, or there are none.
    """
    sizes = [rows * columns for rows, columns in grids]
    if sum(sizes) != patches.shape[0]:
        raise ValueError(f"the grids hold {sum(sizes)} patches but {patches.shape[0]} were given")
    if not sizes:
        raise ValueError("there are no grids to encode: leave out the call")
    pieces = patches.split(sizes)
    features: list[Tensor | None] = [None] * len(pieces)
    for shape in dict.fromkeys(grids):
        members = [index for index, grid in enumerate(grids) if grid == shape]
        encoded = encode(torch.stack([pieces[index] for index in members]), shape)
        for index, image in zip(members, encoded, strict=True):
            features[index] = image
    return torch.cat([image for image in features if image is not None])
