"""The contracts of feed-forwards and routers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from keyekit.batch import Segments
from keyekit.nn.spec import LayerSpec

__all__ = [
    "FeedForward",
    "FeedForwardOutput",
    "Router",
    "RouterSpec",
    "RouterStatistics",
    "Routing",
    "SequenceStatistics",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """Sizes that every router shares.

    Args:
        dim: Model width D.
        num_experts: Experts E.
        active_experts: Experts per token A.
    """

    dim: int
    num_experts: int
    active_experts: int

    def __post_init__(self) -> None:
        if not 0 < self.active_experts <= self.num_experts:
            raise ValueError(
                f"active_experts={self.active_experts} must lie between 1 and num_experts={self.num_experts}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceStatistics:
    """Raw sums over the real tokens of each of the B segments of a pack.

    Args:
        probabilities: ``[B, E]`` summed routing probabilities, differentiable.
        counts: ``[B, E]`` float number of tokens sent to each expert.
        num_tokens: ``[B]`` float tokens counted; 0 for the tail.
    """

    probabilities: Tensor
    counts: Tensor
    num_tokens: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStatistics:
    """Raw sums over the real tokens of a pack; objectives and meters are made of them.

    Args:
        probabilities: ``[E]`` summed routing probabilities, differentiable.
        counts: ``[E]`` float number of tokens sent to each expert.
        num_tokens: Tokens counted.
        squared_logsumexp: Scalar, summed squares of the logits' log-sum-exp, differentiable; ``None`` of a router without
            logits.
        sequences: The sums segment by segment; ``None`` if the router was not told the segments.
    """

    probabilities: Tensor
    counts: Tensor
    num_tokens: int
    squared_logsumexp: Tensor | None = None
    sequences: SequenceStatistics | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which experts each token visits.

    Args:
        weights: ``[T, A]`` float32 factors on the experts' outputs.
        experts: ``[T, A]`` int64. A router that is not dropless may have more columns than A; -1 is no visit, of weight 0.
        statistics: Sums over the real tokens.
        num_visits: Entries of ``experts`` that are no -1, known on the host; ``None`` if all are visits.
    """

    weights: Tensor
    experts: Tensor
    statistics: RouterStatistics
    num_visits: int | None = None


class Router(nn.Module, ABC):
    """Base of the router family: chooses experts per token.

    A router is constructed as ``Scheme(spec, **its_own_arguments)``.

    Args:
        spec: Sizes.
    """

    needs_balance_loss = True
    """Whether training should add a balance loss; ``False`` for a router that balances itself."""

    dropless = True
    """Whether every token visits exactly A experts and its choice depends on no other token."""

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(
        self,
        hidden: Tensor,
        num_tokens: int | None = None,
        selection: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Routing:
        """Route.

        Args:
            hidden: ``[T, D]``.
            num_tokens: Leading tokens to count in the statistics; all by default.
            selection: ``[T, A]`` experts to use instead of choosing them (replay).
            tokens: ``[T]`` int64 token ids, for routers that read them.
            segments: Sequences of the pack, for statistics of each.

        Returns:
            Weights, experts and statistics.
        """

    def update(self, counts: Tensor) -> None:
        """Adapt to the load of one optimizer step, given ``counts [E]`` over the global batch. Nothing by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedForwardOutput:
    """What a feed-forward returns.

    Args:
        hidden: ``[T, D]``.
        routing: The routing, or ``None`` for a dense feed-forward.
    """

    hidden: Tensor
    routing: Routing | None = None


class FeedForward(nn.Module, ABC):
    """Base of the feed-forward family: transforms each token by itself.

    A feed-forward is constructed as ``Scheme(spec, **its_own_arguments)``.

    Args:
        spec: Sizes of the layer.
    """

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(
        self,
        hidden: Tensor,
        num_tokens: int | None = None,
        selection: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        segments: Segments | None = None,
    ) -> FeedForwardOutput:
        """Transform.

        Args:
            hidden: ``[T, D]``.
            num_tokens: Leading tokens that belong to samples; all by default.
            selection: ``[T, A]`` experts to replay.
            tokens: ``[T]`` int64 token ids; ``None`` where the caller has only embeddings.
            segments: Sequences of the pack.

        Returns:
            The transformed states and the routing, if any.
        """
