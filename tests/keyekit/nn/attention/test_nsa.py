"""The layer of native sparse attention: its arguments and weights. Its numbers are in test_conformance.py."""

from __future__ import annotations

import pytest
import torch

from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.nsa import NSA
from keyekit.testing.tiny import tiny_context, tiny_layer_spec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compress_stride": 0}, "the stride has to divide"),
        ({"compress_block": 24}, "compress_block=24, compress_stride=16"),
        ({"select_block": 40}, "select_block=40"),
        ({"compress_block": 128}, "at least as long as a compressed one"),
        ({"topk_blocks": 2}, "topk_blocks=2, initial_blocks=1, local_blocks=2"),
        ({"local_blocks": 0}, "at least the own block is local"),
        ({"initial_blocks": -1}, "initial_blocks=-1"),
        ({"window": 0}, "window=0"),
        ({"compressor_dim": 0}, "compressor_dim=0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NSA(tiny_layer_spec(), **arguments)


def test_weights_of_dense_attention_fit_the_selected_branch() -> None:
    missing, unexpected = NSA(tiny_layer_spec()).load_state_dict(Dense(tiny_layer_spec()).state_dict(), strict=False)
    assert not unexpected
    assert {name.partition(".")[0] for name in missing} == {
        "compression",
        "sliding",
        "key_compressor",
        "value_compressor",
        "compressed_norm",
        "gate_proj",
    }


def test_branches_have_keys_of_their_own_unless_shared() -> None:
    names = {name for name, _ in NSA(tiny_layer_spec(), separate_key_values=False).named_parameters()}
    assert not any(name.startswith(("compression.", "sliding.")) for name in names)


@torch.no_grad()
def test_fixed_blocks_are_always_chosen() -> None:
    torch.manual_seed(0)
    layer = NSA(tiny_layer_spec(), compress_block=4, compress_stride=2, select_block=4, topk_blocks=4, window=3)
    selection = layer(torch.randn(40, 32), tiny_context([40])).selection
    for position, groups in enumerate(selection.tolist()):
        own = position // 4
        for blocks in groups:
            assert {0, own, max(own - 1, 0)} <= set(blocks)
            assert len({block for block in blocks if block >= 0}) == min(own + 1, 4)
