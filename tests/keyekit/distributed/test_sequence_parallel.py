"""Packs divided among 2 and 4 ranks against one process, in float64: outputs, selections, losses and all gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils.checkpoint import checkpoint

from keyekit.batch import Batch
from keyekit.distributed.sequence_parallel import SequenceParallel, install_sequence_parallel
from keyekit.models.decoder import Decoder, DecoderOutput
from keyekit.models.vision_language import VisionLanguageModel
from keyekit.nn.attention.block_topk import BlockTopK
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.attention.exchange import WholePacks
from keyekit.nn.attention.nsa import NSA
from keyekit.nn.attention.sliding_window import SlidingWindow
from keyekit.nn.moe.dense import SwiGLU
from keyekit.nn.moe.expert_choice import ExpertChoice
from keyekit.nn.moe.hashing import Hash
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.projector import MergeProjector
from keyekit.nn.vision.keye_vit import KeyeViT
from keyekit.objectives.cross_entropy import CrossEntropy
from keyekit.objectives.router_balance import balance_loss, router_z_loss, sequence_balance_loss
from keyekit.testing.distributed import run_distributed
from keyekit.testing.tiny import tiny_batch

_dsa = partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=8, recall_rows=4)
_nsa = partial(
    NSA, compress_block=4, compress_stride=2, select_block=4, topk_blocks=3, window=3, local_blocks=1, compressor_dim=8
)
_mixture = partial(MixtureOfExperts, num_experts=6, active_experts=2, expert_dim=12)
SCHEMES: dict[str, dict[str, Any]] = {
    "dense": {"attention": Dense},
    "dsa": {"attention": _dsa},
    "dsa warm-up": {"attention": partial(_dsa, mode="dense_warmup")},
    "dsa without its loss": {"attention": partial(_dsa, topk=30, kl_weight=0.0)},
    "sliding window": {"attention": partial(SlidingWindow, window=3, sinks=2, sink_logits=True)},
    "block topk": {"attention": partial(BlockTopK, block_size=2, topk_blocks=3)},
    "block topk per head": {"attention": partial(BlockTopK, block_size=3, topk_blocks=2, choose_per="head")},
    "nsa": {"attention": _nsa},
    "nsa, one set of keys": {"attention": partial(_nsa, separate_key_values=False)},
    "mixture": {"feed_forward": _mixture},
    "mixture by hash, dsa, recomputed": {
        "attention": _dsa,
        "feed_forward": partial(_mixture, router=Hash),
        "recompute": True,
    },
}
CASES = [(scheme, 4) for scheme in SCHEMES] + [(scheme, 2) for scheme in SCHEMES if "," not in scheme]


def network_of(
    attention: Callable[..., Any] = Dense, feed_forward: Callable[..., Any] = SwiGLU, recompute: bool = False
) -> VisionLanguageModel:
    """Eight heads in four groups; scores differ much, so that choices are no matter of rounding."""
    torch.manual_seed(0)
    decoder = Decoder(
        vocab_size=64,
        dim=32,
        num_layers=2,
        num_heads=8,
        num_groups=4,
        head_dim=16,
        hidden_dim=48,
        attention=attention,
        feed_forward=feed_forward,
        rope_theta=10000.0,
        rope_section=(2, 4, 2),
    )
    vision = KeyeViT(dim=16, num_layers=1, num_heads=2, hidden_dim=24, image_size=56)
    network = VisionLanguageModel(vision, MergeProjector(vision_dim=16, dim=32), decoder).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    if recompute:
        for layer in decoder.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return network


def pack() -> Batch:
    """35 tokens: two and four ranks lengthen the tail; an image crosses a border, a sequence has one token."""
    batch = tiny_batch(lengths=(9, 14, 1, 6), grids=((2, 4), (8, 4), None, (2, 2)), tail=5)
    assert batch.vision is not None
    batch.vision.patches = batch.vision.patches.double()
    return batch


def loss_of(network: VisionLanguageModel, batch: Batch, targets: int) -> tuple[Tensor, DecoderOutput]:
    """Everything that a layer reports; of a part, its share."""
    output = network(batch)
    head = network.decoder.lm_head.weight
    loss = CrossEntropy()(output.hidden, head, batch.labels, batch.num_targets) / targets
    loss = loss + sum(output.losses.values())
    if output.routing:
        loss = loss + balance_loss(output.routing) + sequence_balance_loss(output.routing)
        if output.routing[0].squared_logsumexp is not None:
            loss = loss + 0.1 * router_z_loss(output.routing)
    return loss, output


def gradients_of(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in network.named_parameters()
    }


def summed(gradients: dict[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """The sums over ranks, in one collective."""
    flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
    dist.all_reduce(flat, group=group)
    parts = flat.split([gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


def error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, on the scale of what is expected."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    if not expected.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


@cache
def in_one_process(scheme: str) -> tuple[Tensor, DecoderOutput, dict[str, Tensor]]:
    """Loss, output and gradients of the whole pack."""
    batch, network = pack(), network_of(**SCHEMES[scheme])
    loss, output = loss_of(network, batch, batch.num_targets)
    return loss.detach(), output, gradients_of(network, loss)


def compare(scheme: str, mesh: Any) -> dict[str, float]:
    """Errors of a divided pack by what was compared; selections and visits have to be the same."""
    batch = pack()
    expected_loss, expected, expected_gradients = in_one_process(scheme)
    network = network_of(**SCHEMES[scheme])
    install_sequence_parallel(network, mesh)
    part = network.divide(batch)
    loss, output = loss_of(network, part, batch.num_targets)
    gradients = gradients_of(network, loss)
    group, exchange = mesh.get_group(), network.decoder.exchange
    assert isinstance(exchange, SequenceParallel)
    total = loss.detach().clone()
    dist.all_reduce(total, group=group)
    errors = {"loss": error(total, expected_loss)}
    tokens = batch.segments.total
    errors["hidden"] = error(exchange.gather(output.hidden.detach())[:tokens], expected.hidden.detach())
    for name, gradient in summed(gradients, group).items():
        if expected_gradients[name].abs().max() > 1e-13:
            errors[name] = error(gradient, expected_gradients[name])
        else:
            assert gradient.abs().max() < 1e-12, name
    for own, other in zip(output.selections, expected.selections, strict=True):
        if other.keys is not None:
            assert own.keys is not None
            kept = exchange.gather(own.keys)[:tokens]
            assert torch.equal(kept[..., : other.keys.shape[-1]], other.keys)
            assert (kept[..., other.keys.shape[-1] :] < 0).all()
    for own, other in zip(output.routing, expected.routing, strict=True):
        assert torch.equal(own.counts, other.counts)
        assert own.num_tokens == other.num_tokens
    replayed = network(part, selections=output.selections)
    errors["replayed"] = error(replayed.hidden.detach(), output.hidden.detach())
    return errors


def everything(rank: int, world_size: int) -> dict[tuple[str, int], dict[str, float]]:
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "sequence"))
    meshes = {2: grid["sequence"], 4: init_device_mesh("cpu", (4,))}
    found = {(scheme, degree): compare(scheme, meshes[degree]) for scheme, degree in CASES}
    found["whole packs", 4] = whole_packs_stay_local(meshes[4], rank)
    refuse(meshes[4])
    return found


def whole_packs_stay_local(mesh: Any, rank: int) -> dict[str, float]:
    """A network that divides packs takes whole ones too, each rank its own: two ranks do nothing meanwhile."""
    plain, network = network_of(), network_of()
    install_sequence_parallel(network, mesh)
    if rank > 1:
        return {}
    with torch.no_grad():
        return {"hidden": error(network.eval()(pack()).hidden, plain.eval()(pack()).hidden)}


def refuse(mesh: Any) -> None:
    alone = network_of()
    install_sequence_parallel(alone, init_device_mesh("cpu", (4, 1), mesh_dim_names=("data", "sequence"))["sequence"])
    assert isinstance(alone.decoder.exchange, WholePacks)
    with pytest.raises(ValueError, match="2 key/value groups, which 4 ranks do not divide"):
        install_sequence_parallel(nn.ModuleList([Decoder(64, 32, 1, 4, 2, 16, 48, rope_section=(2, 4, 2))]), mesh)
    with pytest.raises(ValueError, match="ExpertChoice"):
        install_sequence_parallel(network_of(feed_forward=partial(_mixture, router=ExpertChoice)), mesh)

    class Foreign(Dense):
        takes_parts = False

    with pytest.raises(ValueError, match="Foreign, which cannot divide a pack among ranks: choose Dense, DSA"):
        install_sequence_parallel(network_of(attention=Foreign), mesh)
    with pytest.raises(ValueError, match="no decoder"):
        install_sequence_parallel(nn.Linear(2, 2), mesh)


@cache
def results() -> list[dict[tuple[str, int], dict[str, float]]]:
    return run_distributed(everything, 4)


@pytest.mark.parametrize(("scheme", "degree"), CASES, ids=lambda value: str(value))
def test_a_divided_pack_has_the_outputs_and_gradients_of_a_whole_one(scheme: str, degree: int) -> None:
    for errors in results():
        assert errors[scheme, degree].keys() >= {"loss", "hidden", "decoder.embed_tokens.weight"}
        assert "vision.embeddings.patch_embedding.weight" in errors[scheme, degree]
        if "dsa" in scheme and "without" not in scheme:
            assert "decoder.layers.0.self_attn.sa_indexer.k_proj.weight" in errors[scheme, degree]
        wrong = {name: size for name, size in errors[scheme, degree].items() if size > 1e-10}
        assert not wrong


def test_whole_packs_are_computed_as_before() -> None:
    assert results()[0]["whole packs", 4] == {"hidden": 0.0}
