"""Two-axis rotary embedding of the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keyekit.nn.rope.rotary import inverse_frequencies

__all__ = ["grid_rotary_tables"]


def grid_rotary_tables(
    grids: Sequence[tuple[int, int]], head_dim: int, theta: float = 10000.0, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for the patches of packed images and frames.

    The first half of the rotary pairs turns with the row, the second with the column; both restart in every grid
    (Keye-VL 8B sheet 1.3, Keye-VL-2.0 sheet 3 item 4).

    Args:
        grids: ``(rows, columns)`` in patches of each image or frame.
        head_dim: Width of a head; a multiple of 4.
        theta: Base of the frequencies.
        device: Where to put the tables.

    Returns:
        Two tensors ``[P, 1, head_dim]`` float32.

    Raises:
        ValueError: If ``head_dim`` is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"the vision tower's head width must be a multiple of 4 for two rotary axes, got {head_dim}")
    frequencies = inverse_frequencies(head_dim // 2, theta, device)
    angles = {grid: _angles(grid, frequencies) for grid in set(grids)}
    packed = torch.cat([angles[grid] for grid in grids])
    doubled = torch.cat([packed, packed], dim=-1)[:, None, :]
    return doubled.cos(), doubled.sin()


def _angles(grid: tuple[int, int], frequencies: Tensor) -> Tensor:
    rows, columns = grid
    index = torch.arange(rows * columns, device=frequencies.device)
    row, column = index // columns, index % columns
    return torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], dim=-1)
