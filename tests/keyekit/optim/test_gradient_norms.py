"""Norms part by part: equal to those of the whole gradients, whatever is spread over ranks."""

from functools import partial

import pytest
import torch
from torch import nn

from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.optim.gradient_norms import gradient_norms, network_parts
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

MIXTURE = partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=16)
SPARSE = partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=16)


def network() -> nn.Module:
    torch.manual_seed(0)
    return tiny_vision_language_model(SPARSE, MIXTURE)


def backward(model: nn.Module) -> None:
    output = model(tiny_batch())
    (output.hidden.square().sum() + sum(output.losses.values())).backward()


def expected(model: nn.Module) -> dict[str, float]:
    """Norms by names, in float64."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = "indexer" if "sa_indexer" in name else "router" if ".mlp.gate." in name else name.split(".")[0]
        square = 0.0 if parameter.grad is None else parameter.grad.double().square().sum().item()
        squares[part] = squares.get(part, 0.0) + square
    return {part: square**0.5 for part, square in squares.items()}


def test_parts_are_what_one_watches_apart() -> None:
    model = network()
    backward(model)
    norms = gradient_norms(network_parts(model))
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(expected(model), rel=1e-5)
    assert set(norms) == {"vision", "projector", "decoder", "indexer", "router"}
    assert all(norm > 0 for norm in norms.values())


def test_frozen_parameters_are_left_out_and_missing_gradients_count_as_zero() -> None:
    model = network()
    model.vision.requires_grad_(False)
    parts = network_parts(model)
    assert "vision" not in parts
    assert all(norm == 0 for norm in gradient_norms(parts).values())
    assert gradient_norms({"nothing": []})["nothing"] == 0


def test_halves_are_added_in_float32() -> None:
    model = nn.Linear(100, 100, bias=False).half()
    model.weight.grad = torch.full((100, 100), 10.0).half()
    assert gradient_norms({"all": [model.weight]})["all"].item() == pytest.approx(1000.0, rel=1e-4)
    model.weight.grad = torch.full((100, 100), 1000.0).half()  # the norm is beyond the largest half
    assert gradient_norms({"all": [model.weight]})["all"].item() == pytest.approx(1e5, rel=1e-4)


def test_parts_on_different_meshes_have_the_norms_of_one_process(two_ranks) -> None:
    """The vision tower on one mesh, the decoder's layers on another of two dimensions, the projector on none."""
    model = network()
    backward(model)
    for rank in two_ranks:
        assert rank.norms == pytest.approx(expected(model), rel=1e-4)


def test_the_norm_of_a_gradient_that_waits_for_a_sum_is_refused(two_ranks) -> None:
    assert all("reduce it over the ranks" in rank.message for rank in two_ranks)
