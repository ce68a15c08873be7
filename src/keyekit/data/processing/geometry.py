"""How many pixels a patch and a token cover."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KEYE_PATCHES", "PatchGeometry"]


@dataclass(frozen=True, kw_only=True)  # without slots: jsonargparse reads a default through vars()
class PatchGeometry:
    """Squares of patches that the projector merges into one decoder token.

    Args:
        patch_size: Side of a patch in pixels.
        merge_size: Patches along a side of the merged square.

    Example:
        >>> PatchGeometry().token_side, PatchGeometry().grid(56, 84)
        (28, (2, 3))
    """

    patch_size: int = 14
    merge_size: int = 2

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.merge_size < 1:
            raise ValueError(f"patch_size={self.patch_size} and merge_size={self.merge_size} must be at least 1")

    @property
    def token_side(self) -> int:
        """Side in pixels of the square that becomes one decoder token; sides of pictures are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def token_pixels(self) -> int:
        """Pixels that become one decoder token."""
        return self.token_side**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of decoder tokens of a picture whose sides are multiples of :attr:`token_side`."""
        return height // self.token_side, width // self.token_side

    def tokens(self, height: int, width: int) -> int:
        """Decoder tokens of a picture whose sides are multiples of :attr:`token_side`."""
        rows, columns = self.grid(height, width)
        return rows * columns


KEYE_PATCHES = PatchGeometry()
"""Patches of 14x14 pixels, merged 2x2, in every Keye-VL (Keye-VL 8B sheet 1.1 and 1.3, Keye-VL-2.0 sheet 2.4)."""
