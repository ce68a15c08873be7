"""The seam between attention and the ranks that hold the tokens of one pack together."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from keyekit.batch import Batch

__all__ = ["ContextExchange", "WholePacks"]


class ContextExchange(Protocol):
    """Brings the tokens of a pack together for attention where ``ranks`` ranks divide each pack among them.

    Every rank holds T / ranks consecutive tokens with all heads. Around attention it holds all T tokens with its share of the
    heads instead: rank ``r`` has the ``r``-th of equal parts of the heads, and of the key/value groups that they read. All
    ranks call the same methods in the same order.
    """

    ranks: int
    """Ranks that divide a pack."""

    def to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """From own tokens with all heads ``[T / ranks, heads, …]`` to all tokens with own heads ``[T, heads / ranks, …]``.

        Each tensor has its own number of heads; they agree in whatever follows the heads.
        """
        ...

    def to_tokens(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The way back: ``[T, heads / ranks, …]`` to ``[T / ranks, heads, …]``."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """``[T, …]`` of own ``[T / ranks, …]``; the gradients of all ranks' copies add up."""
        ...

    def own_heads(self, values: Tensor) -> Tensor:
        """Of something that each head has, ``[heads, …]``, what belongs to own heads."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """Sum over ranks, without gradients."""
        ...

    def divide(self, batch: Batch, merge: int, whole_videos: bool) -> Batch:
        """This rank's part of a pack that all ranks have.

        Args:
            batch: The pack, best on the host.
            merge: Side of the square of patches that becomes one token.
            whole_videos: Whether the vision tower needs all frames of a video together.
        """
        ...


class WholePacks:
    """The default :class:`ContextExchange`: every rank has packs of its own."""

    ranks = 1

    def to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The tensors themselves."""
        return parts

    def to_tokens(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The tensors themselves."""
        return parts

    def gather(self, rows: Tensor) -> Tensor:
        """The rows themselves."""
        return rows

    def own_heads(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def total(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def divide(self, batch: Batch, merge: int, whole_videos: bool) -> Batch:
        """The pack itself."""
        return batch
