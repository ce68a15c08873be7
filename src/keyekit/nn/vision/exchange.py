"""The seam between a rank's images and the rank whose vision tower encodes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from keyekit.batch import VisionBatch

__all__ = ["VisionExchange", "encode_here"]


class VisionExchange(Protocol):
    """Gets this rank's media encoded, here or elsewhere.

    In training every rank calls it once per pack, also without media, and calls ``encode`` exactly once, so that no collective
    of a sharded tower waits forever and every parameter gets a gradient.
    """

    def __call__(
        self, vision: VisionBatch | None, blank: VisionBatch, encode: Callable[[VisionBatch], Tensor]
    ) -> Tensor:
        """Features ``[tokens, D]`` of own media in their order; without media none, of shape ``[0, D]``.

        Args:
            vision: Own media, or ``None``.
            blank: A grid of one token for a rank that has nothing to encode.
            encode: Vision tower and projector.
        """
        ...


def encode_here(vision: VisionBatch | None, blank: VisionBatch, encode: Callable[[VisionBatch], Tensor]) -> Tensor:
    """The default :class:`VisionExchange`: each rank encodes its own media."""
    return encode(blank)[:0] if vision is None else encode(vision)
