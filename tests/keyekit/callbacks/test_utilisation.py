from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from keyekit.batch import Batch
from keyekit.callbacks.rates import Work, work_of
from keyekit.callbacks.utilisation import StepFlops, device_name, peak_flops
from keyekit.distributed.pack_division import divide_pack
from keyekit.models.flops import training_flops
from keyekit.models.presets import keye_vl_8b_tiny
from keyekit.nn.attention.dsa import DSA
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model


def test_padding_is_no_work() -> None:
    flops = StepFlops(keye_vl_8b_tiny())
    short, long = tiny_batch(tail=3), tiny_batch(tail=300)
    assert flops.of(short) == flops.of(long) > 0
    expected = training_flops(flops.sizes, [9, 14], [(1, 2, 4)], targets=short.num_targets)
    assert flops.of(short) == expected.total


def test_frames_of_a_video_count_together() -> None:
    flops = StepFlops(keye_vl_8b_tiny())
    batch = tiny_batch(lengths=(9, 9), grids=((2, 4), (2, 4)))
    assert batch.vision is not None
    video = replace(batch, vision=replace(batch.vision, frames=(2,)))
    assert flops.of(video) > flops.of(batch)
    assert flops.of("something else") == 0


PARTS = {
    "dense": {},
    "sparse": {"attention": partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=16)},
}


@pytest.mark.parametrize("network", PARTS)
@pytest.mark.parametrize(("ranks", "whole_videos"), [(2, False), (3, True), (5, False)])
def test_parts_of_a_pack_add_up_to_the_pack(network, ranks, whole_videos) -> None:
    flops = StepFlops(tiny_vision_language_model(**PARTS[network]))
    pack = tiny_batch(lengths=(9, 14, 6), grids=((2, 4), (8, 4), (4, 4)), tail=5)
    assert pack.vision is not None
    pack = replace(pack, vision=replace(pack.vision, frames=(1, 1, 1)))
    parts = [divide_pack(pack, rank, ranks, whole_videos=whole_videos) for rank in range(ranks)]
    assert any(part.part.begun_media for part in parts)  # a picture is encoded on both sides of a border
    assert sum(flops.of(part) for part in parts) == pytest.approx(flops.of(pack), rel=1e-12)
    whole, work = work_of(pack), Work()
    for part in parts:
        work += work_of(part)
    for name in ("tokens", "targets", "vision_tokens", "patches", "samples"):
        assert getattr(work, name) == getattr(whole, name), name


def test_what_is_not_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="not of Linear"):
        StepFlops(nn.Linear(2, 2))
    network = keye_vl_8b_tiny()
    network.decoder.norm.requires_grad_(False)
    with pytest.raises(ValueError, match="the decoder is frozen by halves"):
        StepFlops(network)
    sparse = tiny_vision_language_model(partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=16))
    sparse.decoder.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen decoder with sparse attention"):
        StepFlops(sparse)


@pytest.mark.parametrize(
    "frozen", [("vision",), ("projector",), ("vision", "projector"), ("vision", "decoder"), ("decoder",)]
)
def test_frozen_parts_count_what_torch_computes(frozen) -> None:
    """Against PyTorch's own count of the products of a training step, relative to the same with nothing frozen."""
    network = tiny_vision_language_model()
    batch = tiny_batch(
        lengths=(10,) * 8, grids=((2, 4),) * 8, tail=0
    )  # short, for torch counts squares of causal attention
    full, full_counted = StepFlops(network).of(batch), counted(network, batch)
    for part in frozen:
        getattr(network, part).requires_grad_(False)
    share, share_counted = StepFlops(network).of(batch) / full, counted(network, batch) / full_counted
    assert share == pytest.approx(share_counted, rel=0.03)


def counted(network: nn.Module, batch: Batch) -> int:
    with FlopCounterMode(display=False) as counter:
        hidden = network(batch).hidden[batch.labels != -100]
        (hidden @ network.decoder.lm_head.weight.T).sum().backward()
    network.zero_grad()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989e12),
        ("NVIDIA H100 PCIe", "bf16-true", 756e12),
        ("NVIDIA A100-SXM4-80GB", "16-mixed", 312e12),
        ("NVIDIA H100 80GB HBM3", "32-true", None),
        ("cpu", "bf16-mixed", None),
    ],
)
def test_peaks(name, precision, peak) -> None:
    assert peak_flops(name, precision) == peak


def test_a_processor_has_no_name_of_a_gpu() -> None:
    assert device_name(torch.device("cpu")) == "cpu"
