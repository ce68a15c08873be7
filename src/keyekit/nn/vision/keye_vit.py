"""Keye's native-resolution vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.encoder import EncoderBlock
from keyekit.nn.rope.grid import grid_rotary_tables
from keyekit.nn.vision.base import VisionEncoder

__all__ = ["KeyeViT"]


class KeyeViT(VisionEncoder):
    """SigLIP's vision transformer made native-resolution (Keye-VL 8B sheet 1.3, Keye-VL-2.0 sheet 3).

    Position enters twice: a learned table interpolated to each grid, and a two-axis rotary embedding in every layer. The
    released Preview separates media on its flash-attention path alone (sheet 1.3, pitfall); that defect is not reproduced:
    no medium ever sees another. The defaults are the released size of 1.5 and 2.0.

    Args:
        dim: Width.
        num_layers: Blocks.
        num_heads: Attention heads; ``dim / num_heads`` is a multiple of 4.
        hidden_dim: Inner width of the perceptrons.
        patch_size: Side of a patch in pixels.
        image_size: Side in pixels of the square for which the learned table was made.
        in_channels: Channels of the image.
        rope_theta: Base of the rotary frequencies.
        attend: ``frame``: every image or frame attends to itself alone (1.5 and 2.0); ``video``: all frames of a video attend
            to each other, without a position in time (Preview, sheet 1.3).
        rope: Whether the layers rotate queries and keys; without, the tower is SigLIP's.
        interpolate: Whether grids other than the learned table's are allowed, by interpolating it.
        chunk_patches: Encode about so many patches at a time, in whole segments, to bound the memory of activations; 8192 in
            Keye-VL-2.0's inference (sheet 3 item 8). ``None`` encodes all at once. The features are the same.

    Raises:
        ValueError: If ``attend`` is unknown or ``chunk_patches`` is not positive.

    Example:
        >>> vit = KeyeViT(dim=32, num_layers=1, num_heads=2, hidden_dim=64, image_size=56)
        >>> vit(torch.zeros(4 + 6, 3, 14, 14), [(2, 2), (2, 3)]).shape
        torch.Size([10, 32])
    """

    def __init__(
        self,
        dim: int = 1152,
        num_layers: int = 27,
        num_heads: int = 16,
        hidden_dim: int = 4304,
        patch_size: int = 14,
        image_size: int = 384,
        in_channels: int = 3,
        rope_theta: float = 10000.0,
        attend: Literal["frame", "video"] = "frame",
        rope: bool = True,
        interpolate: bool = True,
        chunk_patches: int | None = None,
    ) -> None:
        super().__init__(dim, patch_size)
        if attend not in ("frame", "video"):
            raise ValueError(f"attend={attend!r}: choose 'frame' (1.5 and 2.0) or 'video' (Preview)")
        if chunk_patches is not None and chunk_patches < 1:
            raise ValueError(f"chunk_patches={chunk_patches}: give a positive number of patches, or None for no chunks")
        self.head_dim = dim // num_heads
        self.rope_theta = rope_theta
        self.attend = attend
        self.rope = rope
        self.chunk_patches = chunk_patches
        self.embeddings = PatchEmbeddings(dim, patch_size, image_size // patch_size, in_channels, interpolate)
        blocks = nn.ModuleList(EncoderBlock(dim, num_heads, hidden_dim) for _ in range(num_layers))
        self.encoder = nn.ModuleDict({"layers": blocks})  # the released checkpoint's names
        self.post_layernorm = nn.LayerNorm(dim, 1e-6)

    @property
    def mixes_frames(self) -> bool:
        """Whether frames of a video attend to each other: where the tower attends to whole videos."""
        return self.attend == "video"

    def forward(self, patches: Tensor, grids: Sequence[tuple[int, int]], frames: Sequence[int] | None = None) -> Tensor:
        """Encode ``patches [P, C, patch, patch]`` to ``[P, dim]``; see :class:`VisionEncoder`.

        Raises:
            ValueError: If the grids do not hold the patches, the frames do not add up to the grids, or a grid is not that
                of the learned table and ``interpolate`` is off.
        """
        expected = sum(rows * columns for rows, columns in grids)
        if expected != patches.shape[0]:
            raise ValueError(f"the grids hold {expected} patches but {patches.shape[0]} were given")
        pieces = self._pieces(grids, frames)
        if self.chunk_patches is None:
            return self._encode(patches, pieces)
        # Keye-VL-2.0 sheet 3 item 8: frames per chunk = max(8192 / mean patches per frame, 1)
        count = max(self.chunk_patches * len(pieces) // max(expected, 1), 1)
        chunks = [pieces[start : start + count] for start in range(0, len(pieces), count)]
        sizes = [sum(map(_patches_of, chunk)) for chunk in chunks]
        return torch.cat([self._encode(*pair) for pair in zip(patches.split(sizes), chunks, strict=True)])

    def _pieces(self, grids: Sequence[tuple[int, int]], frames: Sequence[int] | None) -> list[list[tuple[int, int]]]:
        """The grids of each attention segment."""
        if frames is not None and sum(frames) != len(grids):
            raise ValueError(f"frames={tuple(frames)} add up to {sum(frames)}, but there are {len(grids)} grids")
        if self.attend == "frame" or frames is None:
            return [[grid] for grid in grids]
        remaining = iter(grids)
        return [list(islice(remaining, count)) for count in frames]

    def _encode(self, patches: Tensor, pieces: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
        grids = [grid for piece in pieces for grid in piece]
        segments = Segments.of([_patches_of(piece) for piece in pieces], device=patches.device)
        tables = grid_rotary_tables(grids, self.head_dim, self.rope_theta, patches.device) if self.rope else None
        hidden = self.embeddings(patches, grids)
        for block in cast(nn.ModuleList, self.encoder["layers"]):
            hidden = block(hidden, segments, tables)
        return self.post_layernorm(hidden)


def _patches_of(piece: Sequence[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in piece)


class PatchEmbeddings(nn.Module):
    """Linear patch projection plus a learned position table, interpolated to every grid if that is allowed."""

    def __init__(self, dim: int, patch_size: int, side: int, in_channels: int, interpolate: bool) -> None:
        super().__init__()
        self.side = side
        self.may_interpolate = interpolate
        self.patch_embedding = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.position_embedding = nn.Embedding(side * side, dim)
        # SigLIP's starting point: patches of unit variance stay so, positions are as large as one direction of them.
        nn.init.normal_(self.patch_embedding.weight, std=(in_channels * patch_size**2) ** -0.5)
        nn.init.zeros_(cast(Tensor, self.patch_embedding.bias))
        nn.init.normal_(self.position_embedding.weight, std=dim**-0.5)

    def forward(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """``[P, C, patch, patch]`` to ``[P, dim]``."""
        weight = self.patch_embedding.weight.flatten(
            1
        )  # a convolution whose kernel covers the patch is a matrix product
        projected = functional.linear(patches.flatten(1).to(weight.dtype), weight, self.patch_embedding.bias)
        tables = {grid: self.interpolate(grid) for grid in set(grids)}
        if len(tables) == 1:
            table = tables[grids[0]]
            return (projected.unflatten(0, (-1, table.shape[0])) + table).flatten(0, 1)
        return projected + torch.cat([tables[grid] for grid in grids])

    def interpolate(self, grid: tuple[int, int]) -> Tensor:
        """The position table at ``(rows, columns)``, as ``[rows * columns, dim]`` (bilinear, corners not aligned)."""
        if grid == (self.side, self.side):
            return self.position_embedding.weight
        if not self.may_interpolate:
            raise ValueError(
                f"a grid of {grid[0]}x{grid[1]} patches, but interpolate=False and the position table is "
                f"{self.side}x{self.side}: resize images to it or interpolate"
            )
        square = self.position_embedding.weight.T.unflatten(1, (self.side, self.side))[None]
        resized = functional.interpolate(square, size=grid, mode="bilinear", align_corners=False)
        return resized[0].flatten(1).T
