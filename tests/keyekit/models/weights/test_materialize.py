"""Memory for networks that were built without any."""

import pytest
import torch
from torch import nn

from keyekit.models.weights.materialize import initialize, materialize
from keyekit.models.weights.source import CheckpointError
from keyekit.testing.tiny import tiny_vision_language_model


def keep(name: str, tensor: torch.Tensor) -> torch.dtype:
    return tensor.dtype


def test_shared_tensors_stay_shared_and_what_has_memory_keeps_it() -> None:
    with torch.device("meta"):
        network = tiny_vision_language_model()
    network.decoder.lm_head.weight = network.decoder.embed_tokens.weight
    network.projector.linear_1 = nn.Linear(128, 128)
    kept = network.projector.linear_1.weight
    network.decoder.norm.weight.requires_grad_(False)
    materialize(network, "cpu", lambda name, tensor: torch.float64 if name == "model.norm.weight" else tensor.dtype)
    assert not any(tensor.is_meta for tensor in network.state_dict().values())
    assert network.decoder.lm_head.weight is network.decoder.embed_tokens.weight
    assert network.projector.linear_1.weight is kept
    assert network.decoder.norm.weight.dtype == torch.float64
    assert not network.decoder.norm.weight.requires_grad
    assert isinstance(network.decoder.norm.weight, nn.Parameter)


def test_a_buffer_that_no_checkpoint_holds_is_named() -> None:
    network = nn.Sequential(nn.Linear(2, 2, device="meta"))
    network[0].register_buffer("table", torch.empty(2, device="meta"), persistent=False)
    with pytest.raises(CheckpointError, match=r"0\.table is a buffer that no checkpoint holds"):
        materialize(network, "cpu", keep)


def test_initial_values_of_decoder_tensors() -> None:
    torch.manual_seed(0)
    network = tiny_vision_language_model()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 7.0)
    initialize(network, ["model.embed_tokens.weight", "model.layers.0.self_attn.k_norm.weight"])
    assert network.decoder.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.decoder.layers[0].self_attn.projection.k_norm.weight.eq(1).all()
    assert network.decoder.norm.weight.eq(7).all()
    with pytest.raises(CheckpointError, match=r"mlp_AR\.pre_norm\.bias is missing, .* build it on the CPU"):
        initialize(network, ["mlp_AR.pre_norm.bias"])
