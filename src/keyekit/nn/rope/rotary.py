"""Three-axis rotary embedding of the decoder (multimodal RoPE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["MultimodalRope", "Rotary", "apply_rotary", "inverse_frequencies"]


def inverse_frequencies(width: int, theta: float, device: torch.device | str | None = None) -> Tensor:
    """``theta ** (-2 i / width)`` for i in 0 … width/2 - 1, as ``[width / 2]`` float32."""
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    return 1.0 / theta**exponents


@dataclass(frozen=True, slots=True)
class MultimodalRope:
    """Which rotary pairs turn with time, height and width.

    Pairs are split in three consecutive chunks (not interleaved): the first ``section[0]`` turn with the time position,
    the next ``section[1]`` with the row, the rest with the column (Keye-VL 8B sheet 1.5, Keye-VL-2.0 sheet 2.2).

    Args:
        head_dim: Width K of a head; all of it is rotated.
        theta: Base of the frequencies.
        section: Rotary pairs per axis (time, height, width); they add up to ``head_dim / 2``.
    """

    head_dim: int = 128
    theta: float = 1e6
    section: tuple[int, int, int] = (16, 24, 24)

    def __post_init__(self) -> None:
        time, height, width = self.section  # recipes bring a list
        object.__setattr__(self, "section", (time, height, width))
        if 2 * sum(self.section) != self.head_dim:
            raise ValueError(
                f"rope section {tuple(self.section)} covers {sum(self.section)} rotary pairs, but head_dim={self.head_dim} "
                f"has {self.head_dim // 2}: make the section add up to head_dim / 2"
            )

    def scaled_section(self, head_dim: int) -> tuple[int, int, int]:
        """The section for heads of another width, in proportion (the indexer's, Keye-VL-2.0 sheet 4.1 item 3).

        Raises:
            ValueError: If the proportion is not whole.
        """
        scaled = [pairs * head_dim / self.head_dim for pairs in self.section]
        if any(pairs != int(pairs) for pairs in scaled):
            raise ValueError(
                f"rope section {tuple(self.section)} of head_dim {self.head_dim} does not scale to whole pairs "
                f"at width {head_dim}"
            )
        return int(scaled[0]), int(scaled[1]), int(scaled[2])


class Rotary:
    """Cosines and sines of one batch, computed once per head width and shared by all layers.

    Args:
        rope: The embedding.
        positions: ``[3, T]`` int64 positions (time, height, width).
    """

    def __init__(self, rope: MultimodalRope, positions: Tensor) -> None:
        self.rope = rope
        self.positions = positions
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def tables(self, head_dim: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[T, 1, head_dim]`` float32 for heads of this width."""
        if head_dim not in self._tables:
            section = self.rope.scaled_section(head_dim)
            frequencies = inverse_frequencies(head_dim, self.rope.theta, self.positions.device)
            angles = self.positions.float()[:, :, None] * frequencies  # [3, T, head_dim / 2]
            chunks = angles.split(section, dim=-1)
            merged = torch.cat([chunk[axis] for axis, chunk in enumerate(chunks)], dim=-1)
            doubled = torch.cat([merged, merged], dim=-1)[:, None, :]
            self._tables[head_dim] = doubled.cos(), doubled.sin()
        return self._tables[head_dim]

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate heads ``x [T, heads, head_dim]``."""
        return apply_rotary(x, *self.tables(x.shape[-1]))


def apply_rotary(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the two halves of the last axis against each other, in float32 or wider.

    Args:
        x: ``[..., width]``.
        cosine: Broadcastable to ``x``, each half holding the same angles.
        sine: Likewise.

    Returns:
        Rotated ``x`` in its own dtype.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = wide.chunk(2, dim=-1)
    return (wide * cosine + torch.cat([-second, first], dim=-1) * sine).to(x.dtype)
