"""The seam between routers and experts: where the visits of a routing are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from keyekit.nn.moe.base import Routing

__all__ = ["Dispatcher", "compute_here"]


class Dispatcher(Protocol):
    """Brings visits to the experts and their outputs back.

    Every rank calls it once per mixture layer and pass, whatever its tokens are.
    """

    def __call__(self, hidden: Tensor, routing: Routing, compute: Callable[[Tensor, Routing], Tensor]) -> Tensor:
        """Weighted sum ``[T, D]`` of what the visited experts make of ``hidden [T, D]``.

        Args:
            hidden: ``[T, D]`` tokens of this rank.
            routing: Their visits, among all E experts.
            compute: The experts that this rank holds, as a function of tokens and of a routing among these experts.
        """
        ...


def compute_here(hidden: Tensor, routing: Routing, compute: Callable[[Tensor, Routing], Tensor]) -> Tensor:
    """The default :class:`Dispatcher`: this rank holds all experts."""
    return compute(hidden, routing)
