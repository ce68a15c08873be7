"""Which tensor goes where."""

import json

import torch

from keyekit.models.weights.layout import Layout, stored_as
from keyekit.models.weights.source import Stored

BYTES = {"a": 40, "b": 40, "c": 30, "d": 200, "e": 10}
TENSORS = {name: Stored(torch.uint8, (size,)) for name, size in BYTES.items()}


def test_files_fill_up_to_the_limit() -> None:
    layout = Layout.plan(TENSORS, limit=100)
    assert list(layout.files.values()) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(layout.files)[1] == "model-00002-of-00004.safetensors"
    assert layout.indexed
    single = Layout.plan(TENSORS, limit=320)
    assert dict(single.files) == {"model.safetensors": list("abcde")}
    assert not single.indexed


def test_wide_elements_come_first_in_a_file() -> None:
    tensors = {
        "odd": Stored(torch.bfloat16, (3,)),
        "wide": Stored(torch.float32, (2,)),
        "more": Stored(torch.bfloat16, (1,)),
    }
    assert Layout.plan(tensors).names == ["wide", "odd", "more"]


def test_the_index_lists_every_tensor() -> None:
    index = json.loads(Layout.plan(TENSORS, limit=100).index(TENSORS))
    assert index["metadata"]["total_size"] == 320
    assert index["weight_map"]["d"] == "model-00003-of-00004.safetensors"
    assert index["weight_map"].keys() == TENSORS.keys()


def test_a_layout_is_kept_while_its_tensors_are() -> None:
    layout = Layout(files={"x.safetensors": ["d", "a"], "y.safetensors": ["c", "b", "e"]}, indexed=True)
    assert layout.adapted(TENSORS, "fused", 100, unchanged=True) is layout
    more = {"new": Stored(torch.uint8, (1,)), **TENSORS, "last": Stored(torch.uint8, (1,))}
    del more["c"]
    assert layout.adapted(more, "fused", 10**9, unchanged=False).names == ["new", "d", "a", "b", "e", "last"]


def test_a_layout_survives_as_text() -> None:
    layout = Layout(files={"x": ["a"]}, indexed=True, header={"format": "pt"}, index_metadata={"total_size": 3})
    assert Layout.loads(layout.dumps()) == layout


def test_single_experts_have_their_own_sizes() -> None:
    tensors = {
        "m.mlp.experts.gate_up_proj": Stored(torch.bfloat16, (2, 4, 6)),
        "m.mlp.experts.down_proj": Stored(torch.bfloat16, (2, 3, 4)),
    }
    layout = Layout.plan(tensors, "separate")
    assert layout.expert_form == "separate"
    assert len(layout.names) == 6
    assert stored_as("m.mlp.experts.1.up_proj.weight", tensors) == Stored(torch.bfloat16, (3, 4))
    assert stored_as("m.mlp.experts.1.down_proj.weight", tensors) == Stored(torch.bfloat16, (4, 3))
