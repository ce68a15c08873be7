"""Cutting pictures into patches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keyekit.data.processing.geometry import KEYE_PATCHES

__all__ = ["normalise_patches", "patchify", "unpatchify"]


def patchify(pixels: np.ndarray, patch_size: int = KEYE_PATCHES.patch_size) -> Tensor:
    """Cut ``[frames, height, width, 3]`` uint8 into ``[P, 3, patch, patch]`` uint8, row-major in each frame."""
    frames, height, width, channels = pixels.shape
    rows, columns = height // patch_size, width // patch_size
    grid = torch.from_numpy(pixels).view(frames, rows, patch_size, columns, patch_size, channels)
    return grid.permute(0, 1, 3, 5, 2, 4).reshape(-1, channels, patch_size, patch_size)


def normalise_patches(patches: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]: divide by 255, then mean and deviation 0.5 (Keye-VL 8B sheet 2.1 item 4)."""
    return patches.float().div_(127.5).sub_(1.0)


def unpatchify(patches: Tensor, rows: int, columns: int) -> np.ndarray:
    """Put normalised patches ``[rows * columns, 3, patch, patch]`` of one picture together as ``[height, width, 3]`` uint8."""
    channels, side = patches.shape[1], patches.shape[2]
    grid = patches.view(rows, columns, channels, side, side).permute(0, 3, 1, 4, 2)
    pixels = (grid.reshape(rows * side, columns * side, channels).float() + 1) * 127.5
    return pixels.round().clamp(0, 255).to(torch.uint8).cpu().numpy()
