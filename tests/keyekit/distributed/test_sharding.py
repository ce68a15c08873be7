"""Which modules are units; tests/keyekit/distributed/test_strategy.py shards them."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from keyekit.distributed.sharding import _scale_gradient, _with_mean_gradients, blocks_of
from keyekit.nn.moe.dispatch import compute_here
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.testing.tiny import tiny_vision_language_model


def test_blocks_are_layers_and_not_what_is_inside_of_them():
    network = tiny_vision_language_model()
    assert list(blocks_of(network.decoder)) == list(network.decoder.layers)
    assert list(blocks_of(network.vision)) == list(network.vision.encoder["layers"])
    assert list(blocks_of(network.projector)) == []


def test_entries_without_parameters_are_no_blocks():
    part = nn.Module()
    part.stack = nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.ModuleList([nn.Linear(2, 2)]))
    assert list(blocks_of(part)) == [part.stack[0], part.stack[2]]


def test_experts_get_the_mean_gradient_and_tokens_all_of_theirs():
    torch.manual_seed(0)
    mixture = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24)
    layer = tiny_vision_language_model(feed_forward=mixture).decoder.layers[0].mlp
    layer.gate.requires_grad_(False)  # its weights are applied at home, not where experts compute
    hidden = torch.randn(9, 32, requires_grad=True)
    found = []
    for dispatcher in (compute_here, partial(_with_mean_gradients, compute_here, 4)):
        layer.experts.dispatcher = dispatcher
        layer.zero_grad()
        hidden.grad = None
        output = layer(hidden).hidden
        output.square().sum().backward()
        found.append((output, hidden.grad, layer.experts.down_proj.grad))
    (output, tokens, experts), (scaled_output, scaled_tokens, scaled_experts) = found
    torch.testing.assert_close(scaled_output, output)
    torch.testing.assert_close(scaled_tokens, tokens)
    torch.testing.assert_close(scaled_experts, experts / 4)


def test_scaling_a_gradient_leaves_the_value():
    x = torch.tensor([2.0], requires_grad=True)
    y = _scale_gradient(x, 3.0)
    assert y.item() == 2
    y.backward()
    assert x.grad.item() == 3
