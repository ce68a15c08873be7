"""The contracts of feed-forwards and routers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from keyekit.nn.spec import LayerSpec

__all__ = ["FeedForward", "FeedForwardOutput", "Router", "RouterSpec", "RouterStatistics", "Routing"]


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
class RouterStatistics:
    """Raw sums over the real tokens of a pack; objectives and meters are made of them.

    Args:
        probabilities: ``[E]`` summed routing probabilities, differentiable.
        counts: ``[E]`` float number of tokens sent to each expert.
        num_tokens: Tokens counted.
    """

    probabilities: Tensor
    counts: Tensor
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which experts each token visits.

    Args:
        weights: ``[T, A]`` float32 factors on the experts' outputs.
        experts: ``[T, A]`` int64.
        statistics: Sums over the real tokens.
    """

    weights: Tensor
    experts: Tensor
    statistics: RouterStatistics


class Router(nn.Module, ABC):
    """Base of the router family: chooses experts per token.

    A router is constructed as ``Scheme(spec, **its_own_arguments)``.

    Args:
        spec: Sizes.
    """

    needs_balance_loss = True
    """Whether training should add a balance loss; ``False`` for a router that balances itself."""

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__()
        self.spec = spec

    @abstractmethod
    def forward(self, hidden: Tensor, num_tokens: int | None = None, selection: Tensor | None = None) -> Routing:
        """Route.

        Args:
            hidden: ``[T, D]``.
            num_tokens: Leading tokens to count in the statistics; all by default.
            selection: ``[T, A]`` experts to use instead of choosing them (replay).

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
        self, hidden: Tensor, num_tokens: int | None = None, selection: Tensor | None = None
    ) -> FeedForwardOutput:
        """Transform.

        Args:
            hidden: ``[T, D]``.
            num_tokens: Leading tokens that belong to samples; all by default.
            selection: ``[T, A]`` experts to replay.

        Returns:
            The transformed states and the routing, if any.
        """
