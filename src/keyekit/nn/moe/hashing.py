"""The router that learns nothing: a token's id decides."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.moe.base import Router, RouterSpec, Routing
from keyekit.nn.moe.scoring import routing_statistics

__all__ = ["Hash"]

_ODD = 0x9E3779B1
"""Any large odd number: multiples of it are far apart in 32 bits."""


class Hash(Router):
    """A fixed hash of the token id names the experts, each of weight 1/A (Roller et al. 2021, arXiv:2106.04426).

    A baseline for what learnt routing brings. The load follows the frequency of tokens; all placeholders of images and
    videos share an id, hence their experts.

    Args:
        spec: Sizes, filled in by the mixture.
        seed: Chooses the hash; layers with the same seed route alike.
    """

    needs_balance_loss = False

    def __init__(self, spec: RouterSpec, seed: int = 0) -> None:
        super().__init__(spec)
        self.seed = seed

    def forward(
        self,
        hidden: Tensor,
        num_tokens: int | None = None,
        selection: Tensor | None = None,
        *,
        tokens: Tensor | None = None,
        segments: Segments | None = None,
    ) -> Routing:
        """Route by ``tokens [T]``; see :class:`Router`.

        Raises:
            ValueError: If neither token ids nor a selection are given.
        """
        if selection is not None:
            experts = selection.long()
        elif tokens is not None:
            experts = self.experts_of(tokens)
        else:
            raise ValueError("the router Hash reads token ids: call the decoder with tokens=batch.tokens")
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        weights = torch.full_like(experts, 1 / experts.shape[1], dtype=dtype)
        shares = functional.one_hot(experts, self.spec.num_experts).sum(dim=1).to(dtype) / experts.shape[1]
        statistics = routing_statistics(shares, experts, num_tokens, segments=segments)
        return Routing(weights=weights, experts=experts, statistics=statistics)

    def experts_of(self, tokens: Tensor) -> Tensor:
        """``[T, A]`` distinct experts of ``tokens [T]``: every expert draws a number for the id, the highest A win."""
        of_tokens = _mixed(tokens.long() + _ODD * (self.seed + 1))
        of_experts = _ODD * torch.arange(self.spec.num_experts, device=tokens.device)
        draws = _mixed(of_tokens[:, None] + of_experts)  # all different for a token, since mixing is a bijection
        return draws.topk(self.spec.active_experts, dim=-1).indices


def _mixed(values: Tensor) -> Tensor:
    """A bijection of 32-bit integers in which every bit depends on every other: shifts and odd factors in turn."""
    mask = 0xFFFFFFFF
    values = values & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        values = values ^ (values >> shift)
        values = (values * factor) & mask
    return values ^ (values >> 16)
