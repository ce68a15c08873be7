"""From vision features to decoder tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["MergeProjector", "Projector"]


class Projector(nn.Module, ABC):
    """Base of the projector family: turns patch features into decoder embeddings.

    Args:
        dim: Width D of the tokens that it makes.
        merge: Side of the square of patches that becomes one token.
    """

    def __init__(self, dim: int, merge: int) -> None:
        super().__init__()
        self.dim = dim
        self.merge = merge

    @abstractmethod
    def forward(self, features: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Project ``features [P, vision_dim]`` to ``[P / merge**2, D]``, row-major on the merged grids."""


class MergeProjector(Projector):
    """Concatenate squares of patches, then two linear layers with an exact GELU (Keye-VL 8B sheet 1.4, Keye-VL-2.0 sheet 2.5).

    Args:
        vision_dim: Width of the vision features.
        dim: Model width D.
        merge: Side of the square of patches that becomes one token.
        norm: Where the LayerNorm sits: ``after`` the concatenation (1.5 and 2.0) or ``before`` it (Preview).
    """

    def __init__(
        self, vision_dim: int = 1152, dim: int = 4096, merge: int = 2, norm: Literal["before", "after"] = "after"
    ) -> None:
        super().__init__(dim, merge)
        if norm not in ("before", "after"):
            raise ValueError(f"norm={norm!r}: choose 'before' or 'after' the merge")
        merged = vision_dim * merge**2
        self.norm_first = norm == "before"
        self.pre_norm = nn.LayerNorm(vision_dim if self.norm_first else merged, eps=1e-5)
        self.linear_1 = nn.Linear(merged, merged)
        self.linear_2 = nn.Linear(merged, dim)

    def forward(self, features: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Project ``features [P, vision_dim]`` to ``[P / merge**2, dim]``; see :class:`Projector`."""
        order = _merge_order(tuple(grids), self.merge, str(features.device))
        if self.norm_first:
            features = self.pre_norm(features)
        merged = features[order].flatten(1)
        if not self.norm_first:
            merged = self.pre_norm(merged)
        return self.linear_2(functional.gelu(self.linear_1(merged)))


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # an order made while evaluating is used in training too
def _merge_order(grids: tuple[tuple[int, int], ...], merge: int, device: str) -> Tensor:
    """``[tokens, merge**2]`` patch numbers that make up each token: ``(row p1 column p2) -> (row column) (p1 p2)``."""
    orders, start = [], 0
    known: dict[tuple[int, int], Tensor] = {}
    for rows, columns in grids:
        if rows % merge or columns % merge:
            raise ValueError(
                f"a grid of {rows}x{columns} patches cannot be merged {merge}x{merge}: resize to multiples"
            )
        if (rows, columns) not in known:
            square = torch.arange(rows * columns).view(rows // merge, merge, columns // merge, merge)
            known[rows, columns] = square.permute(0, 2, 1, 3).reshape(-1, merge**2)
        orders.append(known[rows, columns] + start)
        start += rows * columns
    return torch.cat(orders).to(device)
