"""Images encoded by other ranks against images encoded at home: features bit by bit, and gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from keyekit.batch import VisionBatch
from keyekit.distributed.sequence_parallel import install_sequence_parallel
from keyekit.distributed.vision_balance import VisionBalance, install_vision_balance
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.vision.exchange import encode_here
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.testing.distributed import run_distributed
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

Media = tuple[tuple[int, tuple[int, int]], ...]
"""Frames and grid of each image or video of a rank."""

# Lengths of one size, or so different that no two share a padded call of attention: then features are equal bit by bit.
FRAME, PAGE, ICON = (4, 4), (8, 8), (4, 8)
CASES: dict[str, tuple[Media, ...]] = {
    "video here, images there": (((6, FRAME),), (), ((1, PAGE), (1, FRAME)), ((1, ICON),)),
    "one rank has all": ((), ((1, FRAME), (2, FRAME), (1, PAGE), (2, FRAME)), (), ()),
    "no rank has any": ((), (), (), ()),
    "one larger than all the others together": (((1, FRAME), (1, (40, 20))), ((1, FRAME),), (), ((2, FRAME),)),
    "alike": (((1, FRAME),),) * 4,
}
COMPARED = [(case, ranks, attend) for case in CASES for ranks, attend in ((2, "frame"), (4, "frame"), (4, "video"))]


def model(attend: str = "frame") -> VisionLanguageModel:
    torch.manual_seed(0)
    network = tiny_vision_language_model()
    network.vision = KeyeViT(dim=32, num_layers=2, num_heads=2, hidden_dim=48, image_size=56, attend=attend)  # pyright: ignore
    return network.double()


def vision_of(media: Media, seed: int, dtype: torch.dtype = torch.float64) -> VisionBatch | None:
    if not media:
        return None
    grids = tuple(grid for frames, grid in media for _ in range(frames))
    patches = torch.randn(
        sum(rows * columns for rows, columns in grids), 3, 14, 14, generator=torch.Generator().manual_seed(seed)
    )
    return VisionBatch(patches=patches.to(dtype), grids=grids, frames=tuple(frames for frames, _ in media))


def features_of(network: VisionLanguageModel, vision: VisionBatch | None, weight: int) -> Tensor:
    """Features; their weighted sum is differentiated."""
    calls: list[VisionBatch] = []

    def encode(vision: VisionBatch) -> Tensor:
        calls.append(vision)
        return network._encode(vision)

    blank = network._blank(next(network.parameters()))
    features = network.vision_exchange(vision, blank, encode)
    assert len(calls) == 1, "the tower has to run once on every rank"
    ((weight + 1) * features.square()).sum().backward()
    return features.detach()


def summed(gradients: dict[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """The sums over ranks, in one collective."""
    flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
    dist.all_reduce(flat, group=group)
    parts = flat.split([gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, on the scale of what is expected; a key's bias has a gradient of zero, and rounding in its place."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-4)) if expected.numel() else 0.0


def compare(case: str, mesh: DeviceMesh, attend: str) -> dict[str, Any]:
    """Whether features are the same bit by bit, and the error of gradients, which add up over ranks."""
    rank = dist.get_rank()
    first = rank - mesh.get_local_rank()
    members = range(first, first + mesh.size())
    visions = [vision_of(media, seed) for seed, media in enumerate(CASES[case])]
    whole, network = model(attend), model(attend)
    expected = {member: features_of(whole, visions[member], member) for member in members}[rank]
    install_vision_balance(network, mesh)
    assert isinstance(network.vision_exchange, VisionBalance)
    features = features_of(network, visions[rank], rank)
    wanted = {name: other.grad for name, other in whole.named_parameters() if not name.startswith("decoder")}
    own = {name: parameter.grad for name, parameter in network.named_parameters() if name in wanted}
    worst = max(error(gradient, wanted[name]) for name, gradient in summed(own, mesh.get_group()).items())
    return {"equal": torch.equal(features, expected), "shape": tuple(features.shape), "gradients": worst}


def travelled(mesh: DeviceMesh) -> list[int]:
    """Patches that each rank's tower saw where one rank has all images."""
    network, seen = model(), []
    install_vision_balance(network, mesh)
    vision = vision_of(CASES["one rank has all"][dist.get_rank()], dist.get_rank())
    hook = network.vision.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    features_of(network, vision, 0)
    hook.remove()
    return seen


def similar_lengths(mesh: DeviceMesh) -> float:
    """Images whose attention is padded together at home: equal up to rounding."""
    media: tuple[Media, ...] = (((1, (4, 4)), (1, (2, 6)), (1, (6, 4))), (), (), ())
    vision = vision_of(media[dist.get_rank()], 0)
    whole, network = model(), model()
    expected = features_of(whole, vision, 0)
    install_vision_balance(network, mesh)
    return error(features_of(network, vision, 0), expected)


def whole_network(mesh: DeviceMesh, pairs: DeviceMesh) -> dict[str, float]:
    """Through the model, with a sharded tower, divided packs, and a rank whose pack is text; in evaluation nothing travels."""
    rank = dist.get_rank()
    batches = [
        tiny_batch(lengths=(9, 30), grids=((4, 4), (8, 8)), tail=1),
        tiny_batch(lengths=(12,), grids=(None,), tail=2),
    ]
    for batch in batches:
        if batch.vision is not None:
            batch.vision.patches = batch.vision.patches.double()
    whole, network = model(), model()
    expected = [whole(batch).hidden for batch in batches]
    sum(hidden.square().sum() for hidden in expected).backward()
    install_sequence_parallel(network, pairs)
    install_vision_balance(network, mesh)
    for block in network.vision.encoder["layers"]:
        fully_shard(block, mesh=mesh)
    tower = fully_shard(network.vision, mesh=mesh)
    tower.set_gradient_divide_factor(1.0)
    for module in (tower, *network.vision.encoder["layers"]):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    own = rank // 2
    hidden = network(network.divide(batches[own])).hidden
    hidden.square().sum().backward()
    count = batches[own].segments.total
    gathered = network.decoder.exchange.gather(hidden.detach())[:count]
    padding = len(hidden) * 2 - count
    assert padding == 0
    errors = {"hidden": error(gathered, expected[own].detach())}
    # All but the output layer, which the loss does not reach.
    gradients = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    totals = summed({name: gradient for name, gradient in gradients.items() if not name.startswith("vision")})
    for name, other in whole.named_parameters():
        if name in gradients:
            total = totals[name] if name in totals else gradients[name].full_tensor()
            errors[name] = error(total, other.grad)
    with torch.no_grad():
        network.eval(), whole.eval()
        errors["evaluation"] = error(network(batches[0]).hidden, whole(batches[0]).hidden)
    return errors


def refuse(mesh: DeviceMesh, grid: DeviceMesh) -> None:
    alone = model()
    install_vision_balance(alone, init_device_mesh("cpu", (4, 1), mesh_dim_names=("data", "vision"))["vision"])
    assert alone.vision_exchange is encode_here
    with pytest.raises(ValueError, match="a Linear has no vision tower"):
        install_vision_balance(nn.Linear(2, 2), mesh)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="this one has 2"):
        install_vision_balance(model(), grid)


def everything(rank: int, world_size: int) -> dict[Any, Any]:
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
    four = init_device_mesh("cpu", (4,))
    meshes = {2: grid["sequence"], 4: four}
    found: dict[Any, Any] = {
        (case, ranks, attend): compare(case, meshes[ranks], attend) for case, ranks, attend in COMPARED
    }
    found["travelled"] = travelled(four)
    found["similar"] = similar_lengths(four)
    found["network"] = whole_network(four, grid["sequence"])
    refuse(four, grid)
    return found


@cache
def results() -> list[dict[Any, Any]]:
    return run_distributed(everything, 4)


@pytest.mark.parametrize(("case", "ranks", "attend"), COMPARED, ids=lambda value: str(value))
def test_features_are_equal_bit_by_bit_and_gradients_add_up(case: str, ranks: int, attend: str) -> None:
    for rank, found in enumerate(results()):
        result = found[case, ranks, attend]
        tokens = sum(frames * rows * columns // 4 for frames, (rows, columns) in CASES[case][rank])
        assert result["shape"] == (tokens, 32)
        assert result["equal"]
        assert result["gradients"] < 1e-10


def test_the_work_of_one_rank_is_shared_by_all() -> None:
    seen = [found["travelled"] for found in results()]
    assert all(len(calls) == 1 for calls in seen)
    patches = [calls[0] for calls in seen]
    assert sum(patches) == 5 * 16 + 64  # no rank had nothing to do, so no blank image was encoded
    assert max(patches) == 64  # the page, which is one image


def test_images_of_similar_lengths_are_equal_up_to_rounding() -> None:
    assert max(found["similar"] for found in results()) < 1e-12


def test_a_sharded_tower_in_divided_packs_of_which_one_is_text() -> None:
    for found in results():
        assert "vision.encoder.layers.1.mlp.fc1.weight" in found["network"]
        assert not {name: size for name, size in found["network"].items() if size > 1e-10}


def test_by_default_every_rank_encodes_its_own() -> None:
    network = model()
    assert network.vision_exchange is encode_here
    vision = vision_of(((2, FRAME),), 0)
    assert vision is not None
    blank = network._blank(vision.patches)
    assert torch.equal(encode_here(vision, blank, network._encode), network._encode(vision))
    assert encode_here(None, blank, network._encode).shape == (0, 32)
