"""What layers compute is kept while somebody watches, and no longer."""

from __future__ import annotations

import pytest
import torch

from keyekit.rollout.teachers.layers import watched


def test_states_are_those_of_the_pass(network, pack) -> None:
    decoder = network.decoder
    with watched(decoder, hidden=[0, -1], attention=[1]) as states:
        output = network(pack)
    assert torch.equal(decoder.norm(states.hidden[-1]), output.hidden)
    assert states.attention[1].queries.shape == (len(pack.tokens), 4, 16)
    assert states.attention[1].keys.shape == (len(pack.tokens), 2, 16)
    kept = states.hidden[0]
    network(pack)
    assert states.hidden[0] is kept


def test_layers_that_are_not_there_are_refused(network) -> None:
    with pytest.raises(ValueError, match="there is no layer 2: the decoder has 2"), watched(network.decoder, [2]):
        pass
    layer = network.decoder.layers[0].self_attn
    projection, layer.projection = layer.projection, None
    try:
        with pytest.raises(ValueError, match="Dense in layer 0 has no projection"), watched(network.decoder, (), [0]):
            pass
    finally:
        layer.projection = projection
