"""Without other ranks the exchange hands back what it is given, to the object."""

import pytest
import torch
from torch import Tensor

from keyekit.nn.attention.base import LayerContext
from keyekit.nn.attention.block_topk import BlockTopK
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.attention.exchange import WholePacks
from keyekit.nn.attention.nsa import NSA
from keyekit.nn.attention.sliding_window import SlidingWindow
from keyekit.testing.tiny import tiny_batch, tiny_context, tiny_layer_spec


def test_whole_packs_need_no_exchange() -> None:
    exchange, first, second = WholePacks(), torch.randn(3, 4), torch.randn(3, 2)
    assert exchange.ranks == 1
    assert exchange.to_heads(first, second) == (first, second)
    assert exchange.to_tokens(first, second) == (first, second)
    assert all(call(first) is first for call in (exchange.gather, exchange.own_heads, exchange.total))
    batch = tiny_batch()
    assert exchange.divide(batch, 2, False) is batch


def test_a_context_of_a_whole_pack_is_its_own() -> None:
    context = tiny_context([3, 4])
    assert context.own() is context
    assert context.held() == (context.segments, 7)


class _Recording(WholePacks):
    """Notes what passes."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        self.calls.append("to_heads")
        return parts

    def to_tokens(self, *parts: Tensor) -> tuple[Tensor, ...]:
        self.calls.append("to_tokens")
        return parts


@pytest.mark.parametrize("scheme", [Dense, SlidingWindow, BlockTopK, NSA, DSA])
def test_every_scheme_that_takes_parts_mixes_through_the_exchange(scheme: type) -> None:
    layer, plain, exchange = scheme(tiny_layer_spec()), tiny_context([5, 2]), _Recording()
    context = LayerContext(segments=plain.segments, rotary=plain.rotary, num_tokens=plain.num_tokens, exchange=exchange)
    layer(torch.randn(7, 32), context)
    assert layer.takes_parts
    assert {"to_heads", "to_tokens"} == set(exchange.calls)
