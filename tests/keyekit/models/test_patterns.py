"""Numbers of pairs against masks written out, and against PyTorch's own counter."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from keyekit.models.cache import SequenceCache
from keyekit.models.flops import forward_flops
from keyekit.models.memory import PRECISIONS, activation_memory, cache_bytes
from keyekit.models.patterns import BlockPattern, NativePattern, WindowPattern, block_pairs, pattern_of
from keyekit.models.sizes import NetworkSizes
from keyekit.nn.attention.block_topk import BlockTopK
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.nsa import NSA
from keyekit.nn.attention.sliding_window import SlidingWindow
from keyekit.testing.tiny import tiny_batch, tiny_context, tiny_layer_spec, tiny_vision_language_model

CASES = [(5, 5), (5, 9), (1, 9), (3, 8), (0, 4), (17, 17), (12, 40)]
COUNTS_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry


def seen_positions(queries: int, keys: int) -> range:
    return range(keys - queries, keys)


@pytest.mark.parametrize(("queries", "keys"), CASES)
@pytest.mark.parametrize(("window", "sinks"), [(3, 0), (4, 2), (1, 1), (50, 4)])
def test_windows(queries: int, keys: int, window: int, sinks: int) -> None:
    pattern = WindowPattern(window=window, sinks=sinks, sink_width=0, head_dim=8)
    by_hand = sum(p - k < window or k < sinks for p in seen_positions(queries, keys) for k in range(p + 1))
    assert pattern.cost([queries], [keys], False).attended == by_hand


@pytest.mark.parametrize(("queries", "keys"), CASES)
@pytest.mark.parametrize(("size", "topk"), [(2, 1), (2, 3), (4, 2), (3, 9)])
def test_blocks(queries: int, keys: int, size: int, topk: int) -> None:
    positions = seen_positions(queries, keys)
    pairs = sum(p % size + 1 + size * min(p // size, topk - 1) for p in positions)
    assert block_pairs(queries, keys, size, topk) == pairs
    cost = BlockPattern(block_size=size, topk_blocks=topk, choosers=2).cost([queries], [keys], False)
    assert cost.attended == pairs
    assert cost.scored == (2 * sum(p // size for p in positions) if keys > size * topk else 0)


@pytest.mark.parametrize(("queries", "keys"), CASES)
@pytest.mark.parametrize(("block", "stride"), [(4, 2), (2, 1), (4, 4)])
def test_native(queries: int, keys: int, block: int, stride: int) -> None:
    pattern = NativePattern(
        compress_block=block,
        compress_stride=stride,
        select_block=4,
        topk_blocks=3,
        window=5,
        num_heads=2,
        compressor_dim=8,
    )
    positions, ends = seen_positions(queries, keys), range(block - 1, keys, stride)
    summaries = sum(end <= p for p in positions for end in ends)
    near = sum(min(p + 1, 5) for p in positions)
    cost = pattern.cost([queries], [keys], False)
    assert cost.attended == summaries + near + block_pairs(queries, keys, 4, 3)
    assert cost.scored == (2 * summaries if keys > 12 else 0)
    assert cost.summarised == sum(end in positions for end in ends)


def test_dense_attention_has_no_pattern() -> None:
    assert pattern_of(Dense(tiny_layer_spec())) is None


ATTENTIONS = {
    "window": partial(SlidingWindow, window=5, sinks=2),
    "window in chunks": partial(SlidingWindow, window=20, sinks=0),
    "window with sink logits": partial(SlidingWindow, window=7, sinks=1, sink_logits=True),
    "wide window": partial(SlidingWindow, window=200),
    "blocks": partial(BlockTopK, block_size=4, topk_blocks=3),
    "blocks per head": partial(BlockTopK, block_size=8, topk_blocks=2, choose_per="head"),
    "many blocks": partial(BlockTopK, block_size=8, topk_blocks=30),
    "native": partial(
        NSA, compress_block=8, compress_stride=4, select_block=8, topk_blocks=4, window=12, compressor_dim=24
    ),
    "native, shared keys": partial(
        NSA, compress_block=4, compress_stride=4, select_block=16, topk_blocks=20, window=7, separate_key_values=False
    ),
}


@pytest.mark.skipif(not COUNTS_ATTENTION, reason="this torch counts fused attention on GPUs alone")
@pytest.mark.parametrize("name", ATTENTIONS)
def test_forward_equals_torchs_counter(name: str) -> None:
    torch.manual_seed(0)
    network = tiny_vision_language_model(attention=ATTENTIONS[name])
    batch = tiny_batch(lengths=(150, 150), grids=((4, 4), (4, 4)), tail=0)
    with torch.no_grad(), FlopCounterMode(display=False) as mode:
        network.decoder.logits(network(batch).hidden)
    ours = forward_flops(NetworkSizes.of(network), batch.segments.lengths, batch.vision.grids, rectangular=True)
    assert ours.total == mode.get_total_flops()
    assert ours.attention == 0 < ours.sparse_attention


@pytest.mark.parametrize("name", ["window", "blocks", "native", "native, shared keys"])
def test_what_is_needed_is_less_than_what_is_multiplied(name: str) -> None:
    sizes = NetworkSizes.of(tiny_vision_language_model(attention=ATTENTIONS[name]))
    assert sizes.assumptions == ()
    needed, computed = (forward_flops(sizes, [150], rectangular=by) for by in (False, True))
    assert needed.linear == computed.linear
    assert 0 < needed.sparse_attention < computed.sparse_attention
    assert needed.selection <= computed.selection


@pytest.mark.parametrize("name", ["window", "blocks", "native", "native, shared keys"])
@torch.no_grad()
def test_the_cache_holds_what_is_planned(name: str) -> None:
    network = tiny_vision_language_model(attention=ATTENTIONS[name])
    batch = tiny_batch(lengths=(30,), grids=((4, 4),), tail=0)
    cache = SequenceCache(2, [30])
    cache.segments_for([30], "cpu")
    network(batch, cache=cache)
    held = sum(buffer.numel() for layer in (0, 1) for buffer in cache.layer(layer)._buffers.values())
    assert 2 * held == 30 * cache_bytes(NetworkSizes.of(network)).key_value


def saved_bytes(layer: torch.nn.Module, length: int) -> int:
    """Bytes per token that autograd keeps of two sequences, without masks of pairs and without the shared rotary tables."""
    known = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    kept: dict[int, torch.Tensor] = {}
    context = tiny_context([length, length], layer.spec)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known and tensor.shape[-3:] != (2 * length, 1, 16):
            kept[place] = tensor  # held, so that no other tensor gets the same place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(2 * length, 32, requires_grad=True), context)
    masks = [tensor for tensor in kept.values() if tensor.ndim == 4 and tensor.shape[1] == 1 and tensor.shape[2] > 32]
    whole, masked = (sum(tensor.untyped_storage().nbytes() for tensor in some) for some in (kept.values(), masks))
    return (whole - masked) // (2 * length)


SPARSE = {name: scheme for name, scheme in ATTENTIONS.items() if name not in ("wide window", "many blocks")} | {
    "native, shared keys": partial(
        NSA, compress_block=4, compress_stride=4, select_block=16, topk_blocks=3, window=7, separate_key_values=False
    )
}


@pytest.mark.parametrize("name", SPARSE)
def test_what_a_scheme_keeps_beyond_dense_attention(name: str) -> None:
    torch.manual_seed(0)
    kept = saved_bytes(SPARSE[name](tiny_layer_spec()), 800) - saved_bytes(Dense(tiny_layer_spec()), 800)
    planned = []
    for attention in (SPARSE[name], Dense):
        sizes = NetworkSizes.of(tiny_vision_language_model(attention=attention))
        settings = {"precision": PRECISIONS["32-true"], "sparse_reference": True}
        planned.append(activation_memory(sizes, 1000, 0, **settings).decoder / 2000)
    assert planned[0] - planned[1] == pytest.approx(kept, rel=0.1)
