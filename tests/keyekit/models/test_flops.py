"""Arithmetic against torch's own counter: matrix products exactly, attention under the counter's convention."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from keyekit.models.flops import Flops, causal_pairs, forward_flops, selected_pairs, training_flops
from keyekit.models.presets import PRESETS, keye_vl_2_30b_a3b, keye_vl_8b_tiny
from keyekit.models.sizes import NetworkSizes
from keyekit.testing.tiny import tiny_batch

TINY = [name for name in PRESETS if name.endswith("_tiny")]

COUNTS_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry
"""Older releases of torch count fused attention on GPUs alone; there everything else is compared."""


def grouped_product(rows, matrices, *_, out_shape=None, **__) -> int:
    """The counter does not know PyTorch's grouped product."""
    return 2 * rows[0] * rows[1] * matrices[-1]


def indexer_scores(query, key, gate, query_lengths, key_lengths, *_, out_shape=None, **__) -> int:
    """Nor what happens inside the operator that scores and selects keys: a product per head and the gated sum."""
    pairs = sum(queries * keys for queries, keys in zip(query_lengths, key_lengths, strict=True))
    return 2 * query[1] * (query[2] + 1) * pairs


def counter() -> FlopCounterMode:
    operators = {
        torch.ops.aten._grouped_mm: grouped_product,
        torch.ops.keyekit_dsa.index_topk: indexer_scores,
    }
    return FlopCounterMode(display=False, custom_mapping=operators)


def counted(counter: FlopCounterMode, attention: bool) -> int:
    by_operation = counter.get_flop_counts()["Global"]
    return sum(number for name, number in by_operation.items() if ("attention" in str(name)) == attention)


def equal_batch():
    """Samples of one length and images of one size, so that no attention call is padded."""
    return tiny_batch(lengths=(45, 45), grids=((4, 4), (4, 4)), tail=0)


@pytest.mark.parametrize("name", TINY)
def test_forward_equals_torchs_counter(name) -> None:
    torch.manual_seed(0)
    network, batch = PRESETS[name].build(), equal_batch()
    with torch.no_grad(), counter() as mode:
        network.decoder.logits(network(batch).hidden)
    sizes = NetworkSizes.of(network)
    ours = forward_flops(sizes, batch.segments.lengths, batch.vision.grids, rectangular=True)
    attention = ours.attention + ours.vision_attention
    assert counted(mode, attention=True) == (attention if COUNTS_ATTENTION else 0)
    assert ours.total - attention == counted(mode, attention=False)


def test_backward_equals_torchs_counter() -> None:
    torch.manual_seed(0)
    network, batch = keye_vl_8b_tiny(), equal_batch()
    with counter() as mode:
        network.decoder.logits(network(batch).hidden).sum().backward()
    ours = training_flops(NetworkSizes.of(network), batch.segments.lengths, batch.vision.grids)
    assert ours.total - ours.attention - ours.vision_attention == counted(mode, attention=False)
    # The counter adds the scores that fused attention computes again in its backward: 3.5 forwards, not 3, and full squares.
    square = forward_flops(NetworkSizes.of(network), batch.segments.lengths, batch.vision.grids, rectangular=True)
    fused = 3.5 * (square.attention + square.vision_attention)
    assert counted(mode, attention=True) == (fused if COUNTS_ATTENTION else 0)


@pytest.mark.parametrize(
    ("queries", "keys", "topk"), [(5, 5, 2), (5, 9, 6), (1, 9, 3), (4, 4, 4), (3, 8, 20), (0, 4, 2)]
)
def test_pairs_are_those_of_a_mask(queries, keys, topk) -> None:
    visible = [keys - queries + row + 1 for row in range(queries)]
    assert causal_pairs(queries, keys) == sum(visible)
    assert selected_pairs(queries, keys, topk) == sum(min(count, topk) for count in visible)


@pytest.fixture(scope="module")
def large() -> NetworkSizes:
    with torch.device("meta"):
        return NetworkSizes.of(keye_vl_2_30b_a3b())


def test_one_query_over_a_long_context(large) -> None:
    # Keye-VL-2.0 sheet 4.4: 2.15 GFLOP dense, 0.306 GFLOP with DSA, one layer at 131,072 tokens.
    one = forward_flops(large, [1], key_lengths=[131_072])
    assert (one.selection + one.sparse_attention) / 48 == pytest.approx(0.306e9, rel=2e-3)
    with torch.device("meta"):
        dense = forward_flops(NetworkSizes.of(keye_vl_2_30b_a3b(attention="dense")), [1], key_lengths=[131_072])
    assert dense.attention / 48 == pytest.approx(2.15e9, rel=2e-3)


def test_a_token_costs_twice_its_active_matrices(large) -> None:
    one = forward_flops(large, [1])
    assert one.mixture == 2 * 48 * (262_144 + 603_979_776 * 8 / 128)  # Keye-VL-2.0 sheet 2.6
    assert one.head == 2 * 311_164_928
    assert one.linear == 2 * 48 * 18_874_368


def test_whole_videos_attend_across_frames() -> None:
    with torch.device("meta"):
        video, frame = (NetworkSizes.of(keye_vl_8b_tiny(video_attention=how)) for how in ("video", "frame"))
    clip, frames = [(3, 2, 4)], [(2, 4)] * 3
    assert forward_flops(frame, [9], clip) == forward_flops(frame, [9], frames)
    assert forward_flops(video, [9], clip).vision_attention == 3 * forward_flops(video, [9], frames).vision_attention


def test_costs_of_samples_add_up(large) -> None:
    together = forward_flops(large, [5000, 30], [(4, 4), (2, 2)])
    assert together == forward_flops(large, [5000], [(4, 4)]) + forward_flops(large, [30], [(2, 2)])


def test_recomputation_costs_another_forward(large) -> None:
    forward = forward_flops(large, [4096], [(8, 8)])
    once = training_flops(large, [4096], [(8, 8)])
    again = training_flops(large, [4096], [(8, 8)], recompute=True)
    assert again.linear - once.linear == forward.linear
    assert again.vision_linear - once.vision_linear == forward.vision_linear - 2 * 64 * large.vision.patch_weights
    assert again.head == once.head


def test_only_labelled_positions_have_logits(large) -> None:
    assert training_flops(large, [100], targets=7).head == 3 * 2 * 7 * 311_164_928


def test_nothing_costs_nothing(large) -> None:
    assert forward_flops(large, []) == Flops()
    assert training_flops(large, [0]).total == 0
