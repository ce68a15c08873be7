"""Multimodal positions of a token sequence: text advances all axes, images and frames spread over rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["VisualSpan", "multimodal_positions", "rope_delta"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualSpan:
    """A run of vision placeholders in a token sequence.

    Args:
        start: Index of the first placeholder token.
        rows: Rows of the merged grid.
        columns: Columns of the merged grid.
        frames: Frames laid out one after the other in this run; 1 for an image or a frame with its own timestamp text.
        time_steps: Offset of each frame on the time axis; ``None`` means 0 for every frame.
    """

    start: int
    rows: int
    columns: int
    frames: int = 1
    time_steps: tuple[int, ...] | None = None

    @property
    def stop(self) -> int:
        """One past the last placeholder token."""
        return self.start + self.frames * self.rows * self.columns


def multimodal_positions(length: int, visuals: Sequence[VisualSpan]) -> Tensor:
    """Positions of every token on the time, height and width axes.

    Blocks follow each other from left to right, each starting one past the largest position so far on any axis: text
    counts up on all three axes together; a visual block adds the frame's time step, the row and the column to its start
    (Keye-VL 8B sheet 2.3, Keye-VL-2.0 sheet 7.3).

    Args:
        length: Tokens in the sequence.
        visuals: Runs of placeholders in order, not overlapping.

    Returns:
        ``[3, length]`` int64.

    Raises:
        ValueError: If spans overlap, leave the sequence, or have another number of time steps than frames.

    Example:
        >>> multimodal_positions(10, [VisualSpan(start=2, rows=2, columns=3)]).tolist()[2]
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6]
    """
    positions = torch.empty(3, length, dtype=torch.int64)
    token, following = 0, 0
    for span in visuals:
        if span.start < token or span.stop > length:
            raise ValueError(f"{span} does not fit: tokens 0..{token} are taken and the sequence has {length}")
        text = span.start - token
        positions[:, token : span.start] = torch.arange(following, following + text)
        following += text
        positions[:, span.start : span.stop] = following + _grid(span)
        following = int(positions[:, span.start : span.stop].max()) + 1
        token = span.stop
    positions[:, token:] = torch.arange(following, following + length - token)
    return positions


def rope_delta(positions: Tensor) -> int:
    """How far positions are ahead of token indices after a sequence: a token decoded at index ``i`` has position ``i + delta``.

    Negative behind images and videos, whose tokens share positions (Keye-VL 8B sheet 2.3, Keye-VL-2.0 sheet 7.3 item 5).

    Args:
        positions: ``[3, length]`` of :func:`multimodal_positions`.

    Example:
        >>> rope_delta(multimodal_positions(10, [VisualSpan(start=2, rows=2, columns=3)]))
        -3
    """
    length = positions.shape[1]
    return int(positions.max()) + 1 - length if length else 0


def _grid(span: VisualSpan) -> Tensor:
    """Offsets ``[3, frames * rows * columns]`` of a span from its start."""
    steps = span.time_steps if span.time_steps is not None else (0,) * span.frames
    if len(steps) != span.frames:
        raise ValueError(f"{span.frames} frames but {len(steps)} time steps")
    axes = torch.meshgrid(
        torch.tensor(steps, dtype=torch.int64), torch.arange(span.rows), torch.arange(span.columns), indexing="ij"
    )
    return torch.stack([axis.flatten() for axis in axes])
