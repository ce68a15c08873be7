"""Anything that tensors can be read from, region by region: a folder, a network, a distributed checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["CheckpointError", "Stored", "TensorSource"]


class CheckpointError(ValueError):
    """A checkpoint cannot be used, or does not fit; the message names file and tensor and says what to do."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is known of a tensor before it is read.

    Args:
        dtype: Of its elements.
        shape: Of the whole tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@runtime_checkable
class TensorSource(Protocol):
    """Tensors under official names, experts stacked, of which any rectangular region can be read by itself."""

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """Dtype and shape of every tensor, in order."""
        ...

    def read(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A region on the CPU. It may share memory with the source: do not write into it."""
        ...

    def where(self, name: str) -> str:
        """Where a tensor is, for messages."""
        ...
