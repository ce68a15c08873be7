from __future__ import annotations

from functools import partial

import torch

from keyekit.models.presets import keye_vl_1_5_8b_tiny, keye_vl_2_30b_a3b
from keyekit.models.sizes import NetworkSizes
from keyekit.nn.attention.base import Attention
from keyekit.nn.attention.dense import Dense
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.testing.tiny import tiny_vision_language_model


def test_sizes_of_the_released_model() -> None:
    with torch.device("meta"):
        sizes = NetworkSizes.of(keye_vl_2_30b_a3b())
    ((layer, count),) = sizes.layers
    assert count == sizes.num_layers == 48
    assert (layer.num_heads, layer.num_groups, layer.head_dim, layer.topk) == (32, 4, 128, 2048)
    assert (layer.indexer_heads, layer.indexer_dim, layer.indexer_weights) == (16, 64, 2_129_920 + 131_072)
    assert (layer.active_experts, layer.num_experts, layer.expert_dim, layer.hidden_dim) == (8, 128, 8 * 768, 0)
    assert (sizes.vision.num_layers, sizes.vision.dim, sizes.vision.hidden_dim) == (27, 1152, 4304)
    assert sizes.vision.patch_weights == 3 * 14 * 14 * 1152
    assert sizes.projector_weights == 4608 * 4608 + 4608 * 2048
    assert sizes.assumptions == ()


def test_shared_experts_count_for_every_token() -> None:
    mixture = partial(MixtureOfExperts, num_experts=8, active_experts=2, expert_dim=16, num_shared_experts=1)
    ((layer, _),) = NetworkSizes.of(tiny_vision_language_model(feed_forward=mixture)).layers
    assert layer.feed_forward_weights == 3 * 32 * 16
    assert layer.expert_weights == 2 * 3 * 32 * 16
    assert layer.router_weights == 8 * 32


def test_layers_of_one_kind_are_counted_together() -> None:
    network = keye_vl_1_5_8b_tiny()
    network.decoder.layers[1].mlp = tiny_vision_language_model().decoder.layers[0].mlp
    assert sorted(count for _, count in NetworkSizes.of(network).layers) == [1, 3]


class Ring(Attention):
    """A scheme that nobody knows."""

    def __init__(self, spec) -> None:
        super().__init__(spec)
        self.inner = Dense(spec)

    def forward(self, hidden, context):
        return self.inner(hidden, context)


def test_what_is_not_known_is_said() -> None:
    foreign = NetworkSizes.of(tiny_vision_language_model(attention=Ring))
    known = NetworkSizes.of(tiny_vision_language_model())
    assert foreign.assumptions == ("Ring is counted as dense causal attention",)
    assert known.assumptions == ()
    assert foreign.layers == known.layers
