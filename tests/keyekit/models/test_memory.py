"""Activations against what autograd really keeps; states and caches against the sheets."""

from __future__ import annotations

import pytest
import torch

from keyekit.models.memory import PRECISIONS, activation_memory, cache_bytes, state_memory
from keyekit.models.presets import PRESETS, keye_vl_2_30b_a3b, keye_vl_8b
from keyekit.models.sizes import NetworkSizes
from keyekit.testing.tiny import tiny_batch

FULL = PRECISIONS["32-true"]


def saved_bytes(network, batch) -> int:
    """Bytes of all tensors that autograd keeps for a forward pass, parameters left out, shared storage once."""
    known = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in known:
            kept[place] = tensor  # held, so that no other tensor gets the same place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("name", "band"), [("keye_vl_8b_tiny", 0.05), ("keye_vl_1_5_8b_tiny", 0.05), ("keye_vl_2_30b_a3b_tiny", 0.1)]
)
def test_activations_are_what_autograd_keeps(name, band) -> None:
    torch.manual_seed(0)
    network = PRESETS[name].build()
    batch = tiny_batch(lengths=(90, 90, 90), grids=((8, 8), (8, 8), (8, 8)), tail=0)
    planned = activation_memory(NetworkSizes.of(network), 270, 192, precision=FULL, sparse_reference=True)
    kept = saved_bytes(network, batch)
    assert (planned.decoder + planned.vision) / kept == pytest.approx(1.0, abs=band)


def test_recomputation_keeps_the_inputs_of_layers_and_one_layer() -> None:
    sizes = NetworkSizes.of(PRESETS["keye_vl_8b_tiny"].build())
    kept = activation_memory(sizes, 100, 0, precision=FULL).decoder
    recomputed = activation_memory(sizes, 100, 0, precision=FULL, checkpointing=True).decoder
    assert recomputed == kept / 4 + 4 * 100 * 4 * 128


def test_kernels_keep_no_copies_of_keys() -> None:
    with torch.device("meta"):
        sizes = NetworkSizes.of(keye_vl_2_30b_a3b())
    kernels, reference = (
        activation_memory(sizes, 1, 0, precision=PRECISIONS["bf16-mixed"], sparse_reference=by) for by in (False, True)
    )
    keys_and_values = 48 * 2 * 4 * 2048 * 4 * 128  # float32 keys and values of 2048 selected tokens, 48 layers
    assert reference.decoder - kernels.decoder > keys_and_values


def test_full_sharding_divides_everything_but_what_is_gathered() -> None:
    held = state_memory(1000, 600, 50, devices=4, sharding="full", precision=PRECISIONS["bf16-mixed"])
    assert (held.weights, held.gradients, held.optimizer, held.gathered) == (1000, 600, 1200, 300)
    repeated = state_memory(1000, 600, 50, devices=4, sharding="none", precision=PRECISIONS["bf16-mixed"])
    assert (repeated.weights, repeated.gradients, repeated.optimizer, repeated.gathered) == (4000, 2400, 4800, 2000)
    assert repeated.total == 13_200
    assert state_memory(10, 10, 5, devices=1, sharding="none", precision=PRECISIONS["bf16-true"]).total == 80


def test_caches_of_2_0() -> None:  # Keye-VL-2.0 sheet 4.4
    with torch.device("meta"):
        cache = cache_bytes(NetworkSizes.of(keye_vl_2_30b_a3b()))
    assert cache.key_value == 48 * 2048 == 96 * 2**10
    assert cache.index == 48 * 68 == 3264
    assert cache.key_value * 262_144 == 24 * 2**30


def test_caches_of_the_8b_hold_no_index() -> None:
    with torch.device("meta"):
        cache = cache_bytes(NetworkSizes.of(keye_vl_8b()))
    assert cache.key_value == 36 * 2 * 8 * 128 * 2
    assert cache.index == cache.index_wide == 0
