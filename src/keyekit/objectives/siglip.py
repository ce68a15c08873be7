"""Sigmoid loss for image–text matching, over the pairs of all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Exchange", "SigLIP"]


class Exchange(Protocol):
    """Ranks in a circle, each of which hands tensors to the next (``keyekit.distributed.ring.Ring``)."""

    size: int
    """Number of ranks."""

    def start(self, *tensors: Tensor) -> Callable[[], tuple[Tensor, ...]]:
        """Begin to hand tensors on; calling the result waits and returns the previous rank's."""
        ...


class SigLIP(nn.Module):
    """Every image–caption pair of the global batch is a yes/no question (SigLIP; Keye-VL 8B sheet 4.2).

    ``-(1 / B) * sum_ij log sigmoid(z_ij * (scale * image_i @ caption_j + bias))`` with ``z`` = 1 where caption ``j`` is that of
    image ``i`` and -1 elsewhere. The gradient has a closed form, so it is computed beside the loss, block by block: under
    several ranks the captions and their gradient travel in a circle past everybody's images, and no rank ever holds more
    than ``rows`` × (its own pairs) logits.

    Args:
        rows: Images whose logits are held at a time.

    Raises:
        ValueError: If ``rows`` is not positive.

    Example:
        >>> images = torch.eye(2)
        >>> one = torch.tensor(1.0)
        >>> SigLIP()(images, images, 18 * one, -9 * one, torch.tensor([3, 4])).item() < 0.001
        True
    """

    def __init__(self, rows: int = 1024) -> None:
        super().__init__()
        if rows < 1:
            raise ValueError(f"rows={rows} must be at least 1")
        self.rows = rows

    def forward(
        self,
        images: Tensor,
        captions: Tensor,
        scale: Tensor,
        bias: Tensor,
        identities: Tensor,
        ring: Exchange | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            images: ``[B, D]`` of unit length.
            captions: ``[B, D]`` of unit length.
            scale: Scalar, the inverse temperature itself and not its logarithm.
            bias: Scalar.
            identities: ``[B]`` int64, equal for captions of equal text, so that they are no negatives of each other.
            ring: The ranks whose batches belong together, each with B pairs; this rank alone by default.

        Returns:
            Scalar, in float32 or wider. Its mean over ranks is the loss of the global batch, and the mean of all ranks'
            gradients, as data parallelism takes it, is the gradient of that.
        """
        return _PairwiseSigmoid.apply(images, captions, scale, bias, identities, ring, self.rows)  # pyright: ignore[reportReturnType]


class _PairwiseSigmoid(torch.autograd.Function):
    """Loss and gradient in one pass over the blocks of the circle."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        captions: Tensor,
        scale: Tensor,
        bias: Tensor,
        identities: Tensor,
        ring: Exchange | None,
        rows: int,
    ) -> Tensor:
        kind = torch.promote_types(images.dtype, torch.float32)
        own, visiting, visitors = images.to(kind), captions.to(kind).contiguous(), identities.contiguous()
        by_image, by_visiting = torch.zeros_like(own), torch.zeros_like(visiting)
        sums = own.new_zeros(3)  # of the loss, and of its derivatives by scale and bias
        for step in range(1 if ring is None else ring.size):
            following = None
            if ring is not None and step < ring.size - 1:
                following = ring.start(visiting, visitors)  # travels while this block is computed
            for part in torch.arange(len(own), device=own.device).split(rows):
                products = own[part] @ visiting.T
                signs = (identities[part, None] == visitors[None]).to(kind) * 2 - 1
                margins = signs * (scale.to(kind) * products + bias.to(kind))
                slopes = -signs * torch.sigmoid(-margins)
                sums += torch.stack([-functional.logsigmoid(margins).sum(), (slopes * products).sum(), slopes.sum()])
                by_image[part] += slopes @ visiting
                by_visiting += slopes.T @ own[part]
            if ring is not None:  # the gradient follows its captions, and after a whole turn it is at home
                (by_visiting,) = ring.start(by_visiting)()
            if following is not None:
                visiting, visitors = following()
        sums = sums / len(own)
        factor = scale.to(kind) / len(own)
        ctx.save_for_backward(factor * by_image, factor * by_visiting, sums)
        ctx.kinds = (images.dtype, captions.dtype, scale.dtype, bias.dtype)
        return sums[0].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        by_image, by_caption, sums = ctx.saved_tensors
        parts = (by_image, by_caption, sums[1], sums[2])
        return (
            *((gradients[0] * part).to(kind) for part, kind in zip(parts, ctx.kinds, strict=True)),
            None,
            None,
            None,
        )
