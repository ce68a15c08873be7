"""How one part of a network is spread over ranks and kept in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["FloatType", "PartPlan", "RankError"]

FloatType = Literal["float32", "bfloat16", "float16"]
"""Names of floating-point types in recipes."""


class RankError(ValueError):
    """The ranks of a run cannot be divided, or a network among them, as a recipe asks; the message says what can be done."""


@dataclass(frozen=True, kw_only=True)
class PartPlan:
    """How the vision tower, the projector or the decoder is sharded, computed and recomputed.

    Args:
        sharding: ``full`` cuts parameters, gradients and optimizer states over all ranks. ``hybrid`` cuts them over groups of
            ``shard_group`` consecutive ranks, such as those of one machine, and keeps a copy in each group. ``replicate`` keeps
            a copy on every rank, for small parts.
        shard_group: Ranks that share one copy; for ``hybrid`` alone.
        activation_checkpointing: Whether a block keeps its input alone and is computed again in the backward pass.
        offload: Whether shards, gradients and optimizer states stay in the host's memory, where the optimizer then runs.
        reshard_after_forward: Whether a block gives its gathered parameters back after the forward pass and gathers them again
            in the backward pass; without, it keeps them in between.
        parameter_dtype: Type in which parameters are gathered and blocks compute; that of the shards by default.
        reduce_dtype: Type in which gradients are added up over ranks; by default float32 where ``parameter_dtype`` is given,
            otherwise the gradients' own.

    Raises:
        RankError: If ``shard_group`` is missing where it is needed, or given where it means nothing.
    """

    sharding: Literal["full", "hybrid", "replicate"] = "full"
    shard_group: int | None = None
    activation_checkpointing: bool = False
    offload: bool = False
    reshard_after_forward: bool = True
    parameter_dtype: FloatType | None = None
    reduce_dtype: FloatType | None = None

    def __post_init__(self) -> None:
        if self.sharding not in ("full", "hybrid", "replicate"):
            raise RankError(f"sharding={self.sharding!r}: choose 'full', 'hybrid' or 'replicate'")
        if self.sharding == "hybrid" and self.shard_group is None:
            raise RankError(
                "sharding='hybrid' needs shard_group: how many ranks share one copy, such as 8 of a machine"
            )
        if self.sharding != "hybrid" and self.shard_group is not None:
            raise RankError(
                f"shard_group={self.shard_group} says how 'hybrid' shards, but sharding={self.sharding!r}: drop one of them"
            )

    @property
    def gathered_dtype(self) -> torch.dtype | None:
        """:attr:`parameter_dtype` for torch."""
        return None if self.parameter_dtype is None else getattr(torch, self.parameter_dtype)

    @property
    def reduced_dtype(self) -> torch.dtype | None:
        """:attr:`reduce_dtype` for torch, with its default."""
        name = self.reduce_dtype or (None if self.parameter_dtype is None else "float32")
        return None if name is None else getattr(torch, name)
