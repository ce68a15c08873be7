"""Every attention scheme is one word away from the quickstart, and trains in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from keyekit.cli.expand import expand_recipe
from keyekit.registry import load
from keyekit.testing.tiny import tiny_context, tiny_layer_spec

ROOT = Path(__file__).parent.parent.parent
KEY = "--model.network.decoder.attention"
SWAPS = {
    "SlidingWindow": {"window": 12, "sinks": 2, "sink_logits": True},
    "BlockTopK": {"block_size": 4, "topk_blocks": 4, "choose_per": "head"},
    "NSA": {"compress_block": 4, "compress_stride": 2, "select_block": 4, "topk_blocks": 4, "window": 12},
}


def attention_of(*words: str) -> dict:
    expanded = yaml.safe_load(expand_recipe(list(words)))
    return expanded["model"]["init_args"]["network"]["init_args"]["decoder"]["init_args"]["attention"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SWAPS)
def test_a_scheme_is_swapped_in_on_the_command_line(name: str) -> None:
    words = [f"{KEY}={name}", *(f"{KEY}.{argument}={value}" for argument, value in SWAPS[name].items())]
    found = attention_of(str(ROOT / "recipes/quickstart.yaml"), *words)
    assert found["class_path"].rpartition(".")[2] == name
    assert SWAPS[name].items() <= found["init_args"].items()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["DSA", "SlidingWindow", "BlockTopK", "NSA"])
def test_the_ablations_hide_much_of_a_sample_of_the_quickstart(name: str) -> None:
    """A sample there has 40 to 80 tokens: a scheme that shows most of them would be dense under another name."""
    snake = {"DSA": "dsa", "SlidingWindow": "sliding_window", "BlockTopK": "block_topk", "NSA": "nsa"}[name]
    arguments = dict(attention_of(str(ROOT / f"recipes/ablations/attention_{snake}.yaml"))["init_args"])
    arguments |= {"indexer_head_dim": 8} if name == "DSA" else {}  # the tiny rope is half as wide
    with torch.no_grad():
        output = load("attention", name)(tiny_layer_spec(), **arguments)(torch.randn(60, 32), tiny_context([60]))
    assert 0.2 < output.meters["selected_share"] < 0.55
