"""Tensors that released checkpoints ship and no model uses: they ride along and are never parameters."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from keyekit.models.weights.folder import WeightFolder
from keyekit.models.weights.names import is_passenger
from keyekit.models.weights.source import Stored, TensorSource

__all__ = ["WithPassengers"]

_log = logging.getLogger(__name__)


class WithPassengers:
    """A source with what another folder ships beside it.

    Args:
        own: Tensors of a network.
        origin: The checkpoint that the network came from.
    """

    def __init__(self, own: TensorSource, origin: WeightFolder) -> None:
        self.own = own
        self.origin = origin
        others = [name for name in origin.tensors if name not in own.tensors]
        riding = {name: origin.tensors[name] for name in others if is_passenger(name)}
        left = [name for name in others if name not in riding]
        if left:
            _log.info(
                "%d tensors of %s are not the network's and are left out, first %s", len(left), origin.path, left[0]
            )
        self.tensors: Mapping[str, Stored] = {**own.tensors, **riding}

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A region of either's tensor."""
        return (self.own if name in self.own.tensors else self.origin).read(name, offset, shape)

    def where(self, name: str) -> str:
        """For messages."""
        return (self.own if name in self.own.tensors else self.origin).where(name)
