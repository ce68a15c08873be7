"""Eight-bit indexer queries and keys: Hadamard rotation, e4m3 values with power-of-two scales, and pages of them.

Defines what the released inference code stores (Keye-VL-2.0 sheet 4.1 items 4 to 7, sheet 4.4).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PAGE_TOKENS", "dequantize", "fake_quantize", "hadamard", "pack_pages", "quantize", "unpack_pages"]

PAGE_TOKENS = 64
"""Tokens of one page of the index cache."""

_LARGEST = 448.0  # of e4m3
_SMALLEST_PEAK = 1e-4


def hadamard(x: Tensor) -> Tensor:
    """Walsh–Hadamard transform of the last axis, scaled to be orthonormal.

    Applied to queries and keys alike it leaves their products unchanged and spreads outliers over all channels, which is what
    eight bits want. It is its own inverse.

    Args:
        x: ``[..., width]`` floating; ``width`` is a power of two.

    Returns:
        The transform, in the dtype of ``x``.

    Raises:
        ValueError: If the width is no power of two.

    Example:
        >>> hadamard(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    width = x.shape[-1]
    if width < 1 or width & (width - 1):
        raise ValueError(f"a Hadamard transform needs a width that is a power of two, got {width}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    half = 1
    while half < width:
        left, right = wide.unflatten(-1, (-1, 2, half)).unbind(-2)
        wide = torch.stack([left + right, left - right], dim=-2).flatten(-3)
        half *= 2
    return (wide * width**-0.5).to(x.dtype)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to e4m3 with one scale that is a power of two.

    ``scale = 2 ** ceil(log2(max(amax, 1e-4) / 448))``; powers of two multiply without rounding.

    Args:
        x: ``[..., width]`` floating.

    Returns:
        ``[..., width]`` float8_e4m3fn and ``[...]`` float32 scales, ``x`` being about value times scale.
    """
    wide = x.float()
    peak = wide.abs().amax(dim=-1).clamp(min=_SMALLEST_PEAK)
    # frexp is exact where log2 rounds: peak / 448 = mantissa * 2 ** exponent with the mantissa in [0.5, 1).
    mantissa, exponent = torch.frexp(peak / _LARGEST)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    scale = torch.ldexp(torch.ones_like(peak), exponent)
    values = (wide / scale[..., None]).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return values, scale


def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """``values [..., width]`` times ``scale [...]`` in float32; exact, as the scale is a power of two."""
    return values.float() * scale[..., None]


def fake_quantize(x: Tensor) -> Tensor:
    """What is left of ``x [..., width]`` after rotation, rounding to eight bits and back; the gradient passes straight through.

    The result stays rotated: use it for queries and keys both. Scores made of it are those of the eight-bit path up to the
    order of float32 sums.
    """
    rotated = hadamard(x)
    rounded = dequantize(*quantize(rotated.detach())).to(x.dtype)
    return rotated + (rounded - rotated).detach()


def pack_pages(values: Tensor, scale: Tensor) -> Tensor:
    """Lay keys out as the index cache does: per page first the values of all its tokens, then their scales.

    Args:
        values: ``[S, width]`` float8_e4m3fn; ``S`` is a multiple of :data:`PAGE_TOKENS`.
        scale: ``[S]`` float32.

    Returns:
        ``[S / 64, 64 * (width + 4)]`` uint8.

    Raises:
        ValueError: If the last page is not full.
    """
    if values.shape[0] % PAGE_TOKENS:
        raise ValueError(f"{values.shape[0]} tokens do not fill pages of {PAGE_TOKENS}: pad them")
    pages = values.view(torch.uint8).reshape(-1, PAGE_TOKENS * values.shape[1])
    scales = scale.contiguous().view(torch.uint8).reshape(-1, PAGE_TOKENS * 4)
    return torch.cat([pages, scales], dim=1)


def unpack_pages(pages: Tensor) -> tuple[Tensor, Tensor]:
    """Undo :func:`pack_pages`.

    Args:
        pages: ``[pages, 64 * (width + 4)]`` uint8.

    Returns:
        Values ``[S, width]`` float8_e4m3fn and scales ``[S]`` float32.
    """
    width = pages.shape[1] // PAGE_TOKENS - 4
    values, scales = pages.split([PAGE_TOKENS * width, PAGE_TOKENS * 4], dim=1)
    values = values.contiguous().view(torch.float8_e4m3fn).reshape(-1, width)
    return values, scales.contiguous().view(torch.float32).flatten()
