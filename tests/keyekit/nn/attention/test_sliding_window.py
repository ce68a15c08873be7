"""The layer of sliding windows: its arguments, and what decoding reads. Its numbers are in test_conformance.py."""

from __future__ import annotations

import pytest
import torch

from keyekit.models.cache import SequenceCache
from keyekit.nn.attention.base import LayerContext
from keyekit.nn.attention.sliding_window import SlidingWindow
from keyekit.nn.rope.rotary import Rotary
from keyekit.testing.tiny import tiny_context, tiny_layer_spec


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="window=0: a token sees at least itself"):
        SlidingWindow(tiny_layer_spec(), window=0)
    with pytest.raises(ValueError, match=r"sinks=-1: .* 0 for none"):
        SlidingWindow(tiny_layer_spec(), window=4, sinks=-1)


def test_sink_logits_are_learnt_per_head_and_only_if_asked_for() -> None:
    assert SlidingWindow(tiny_layer_spec()).sink_logits is None
    layer = SlidingWindow(tiny_layer_spec(), window=50, sink_logits=True)
    assert layer.sink_logits.shape == (4,)
    hidden, context = torch.randn(6, 32), tiny_context([6])
    with torch.no_grad():
        layer.sink_logits.fill_(40.0)  # a sink that takes everything leaves nothing
        assert layer(hidden, context).hidden.abs().max() < 1e-6


@pytest.mark.parametrize("lengths", [(40, 40), (40, 25)])
@torch.no_grad()
def test_a_decoding_step_reads_nothing_but_window_and_sinks(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = SlidingWindow(tiny_layer_spec(), window=5, sinks=2)
    cache = SequenceCache(1, [length + 1 for length in lengths])
    whole = tiny_context(lengths)
    prompt = LayerContext(
        segments=cache.segments_for(lengths, "cpu"),
        rotary=whole.rotary,
        num_tokens=sum(lengths),
        cache=cache.layer(0),
    )
    layer(torch.randn(sum(lengths), 32), prompt)
    cache.advance(lengths)
    new, position = torch.randn(2, 32), torch.tensor(lengths).expand(3, -1)

    def step() -> torch.Tensor:
        context = LayerContext(
            segments=cache.segments_for([1, 1], "cpu"),
            rotary=Rotary(whole.rotary.rope, position),
            num_tokens=2,
            cache=cache.layer(0),
        )
        return layer(new, context).hidden

    before = step()
    for start, length in zip(cache.starts(), lengths, strict=True):
        for name in ("key", "value"):
            cache.layer(0)._buffers[name].narrow(-2, start + 2, length + 1 - 5 - 2).fill_(torch.nan)
    assert torch.equal(step(), before)
