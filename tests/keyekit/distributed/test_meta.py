"""Filling networks in one process; tests/keyekit/distributed/test_strategy.py does it with shards on two."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from keyekit.distributed.meta import fill_shards, is_on_meta, materialize_shards
from keyekit.models.weights import CheckpointError, save_weights
from keyekit.nn.attention.dsa import DSA
from keyekit.testing.tiny import tiny_vision_language_model

CPU = torch.device("cpu")
_ANY = "embeddings.patch_embedding.weight"


def on_meta(attention=None) -> nn.Module:
    with torch.device("meta"):
        return tiny_vision_language_model() if attention is None else tiny_vision_language_model(attention)


def test_memory_comes_without_values_and_values_from_the_folder(tmp_path):
    source = tiny_vision_language_model()
    save_weights(source, tmp_path)
    network = on_meta()
    assert is_on_meta(network)
    materialize_shards(network, lambda part: CPU)
    assert not is_on_meta(network)
    assert all(parameter.isnan().all() for parameter in network.parameters())
    fill_shards(network, tmp_path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_what_is_drawn_follows_from_the_seed(tmp_path):
    save_weights(tiny_vision_language_model(), tmp_path)
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 10)  # the global generator has no part in it
        network = on_meta(partial(DSA, topk=6, num_indexer_heads=2, indexer_head_dim=16))
        materialize_shards(network, lambda part: CPU)
        report = fill_shards(network, tmp_path, seed)
        assert report.new_indexers
        made.append(network.decoder.layers[1].self_attn.sa_indexer)
    assert torch.equal(made[0].q_proj.weight, made[1].q_proj.weight)
    assert not torch.equal(made[0].q_proj.weight, made[2].q_proj.weight)
    assert made[0].k_norm.weight.eq(1).all()
    assert made[0].k_norm.bias.eq(0).all()


def test_a_projector_that_is_to_be_aligned_is_drawn_as_it_draws_itself(tmp_path):
    whole = tiny_vision_language_model()
    save_weights(nn.ModuleDict({"decoder": whole.decoder, "vision": whole.vision}), tmp_path)
    network = on_meta()
    materialize_shards(network, lambda part: CPU)
    fill_shards(network, tmp_path)
    layer, own = network.projector.linear_1, whole.projector.linear_1
    bound = layer.in_features**-0.5
    for tensor, other in ((layer.weight, own.weight), (layer.bias, own.bias)):
        assert tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(other.std().item(), rel=0.2)
    assert network.projector.pre_norm.weight.eq(1).all()
    assert torch.equal(network.vision.state_dict()[_ANY], whole.vision.state_dict()[_ANY])


def test_a_missing_tensor_of_another_part_is_refused(tmp_path):
    save_weights(nn.ModuleDict({"decoder": tiny_vision_language_model().decoder}), tmp_path)
    network = on_meta()
    materialize_shards(network, lambda part: CPU)
    with pytest.raises(CheckpointError, match=r"is missing, and only tensors of decoder and projector.*meta: false"):
        fill_shards(network, tmp_path)


def test_a_buffer_that_no_checkpoint_holds_is_refused():
    network = nn.Module()
    network.part = nn.Linear(2, 2)
    network.part.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    with pytest.raises(CheckpointError, match=r"part\.table is a buffer that no checkpoint holds"):
        materialize_shards(network, lambda part: CPU)
