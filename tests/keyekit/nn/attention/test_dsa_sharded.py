"""A DSA layer under FSDP2 and under activation checkpointing: the gradients of the plain layer."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from keyekit.batch import Segments
from keyekit.nn.attention.base import LayerContext
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.rope.rotary import MultimodalRope, Rotary
from keyekit.nn.spec import LayerSpec
from keyekit.testing.distributed import run_distributed
from keyekit_kernels import dsa

ROPE = MultimodalRope(head_dim=32, section=(4, 6, 6))
SPEC = LayerSpec(layer=0, dim=48, num_heads=4, num_groups=2, head_dim=32, hidden_dim=64, norm_eps=1e-6, rope=ROPE)
LENGTHS = ([7, 5], [4, 6, 2])
"""Samples of each rank; as many tokens in both."""


def context(lengths: list[int]) -> LayerContext:
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1)
    return LayerContext(segments=Segments.of(lengths), rotary=Rotary(ROPE, positions), num_tokens=sum(lengths))


def layer(implementation: str) -> DSA:
    torch.manual_seed(0)
    return DSA(SPEC, topk=4, num_indexer_heads=2, indexer_head_dim=16, implementation=implementation)


def loss_of(attention: DSA, rank: int) -> torch.Tensor:
    hidden = torch.randn(12, 48, generator=torch.Generator().manual_seed(rank))
    output = attention(hidden, context(LENGTHS[rank]))
    return output.hidden.square().mean() + output.losses["indexer_kl"]


def sharded_gradients(rank: int, world_size: int, implementation: str) -> tuple[float, dict[str, torch.Tensor]]:
    attention = fully_shard(layer(implementation))
    loss = loss_of(attention, rank)
    loss.backward()
    assert all(isinstance(parameter, DTensor) for parameter in attention.parameters())
    return loss.item(), {name: parameter.grad.full_tensor() for name, parameter in attention.named_parameters()}


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_two_ranks_have_the_gradients_of_one_process(implementation: str) -> None:
    attention = layer("torch")
    losses = [loss_of(attention, rank) for rank in range(2)]
    (sum(losses) / 2).backward()
    expected = {name: parameter.grad for name, parameter in attention.named_parameters()}
    for (loss, gradients), alone in zip(run_distributed(sharded_gradients, 2, implementation), losses, strict=True):
        assert loss == pytest.approx(alone.item(), rel=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}"
            )


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("keep", [False, True], ids=["recomputed", "kept"])
def test_a_layer_that_is_computed_again_selects_alike(keep: bool, implementation: str) -> None:
    attention, hidden = layer(implementation), torch.randn(12, 48)
    selections, gradients = [], []
    attention.register_forward_hook(lambda _, __, output: selections.append(output.selection))
    options = {"context_fn": dsa.keep_selections} if keep else {}
    for again in (False, True):
        own = hidden.clone().requires_grad_()

        def run(hidden: torch.Tensor) -> torch.Tensor:
            output = attention(hidden, context(LENGTHS[0]))
            return output.hidden.square().sum() + output.losses["indexer_kl"]

        attention.zero_grad()
        (checkpoint(run, own, use_reentrant=False, **options) if again else run(own)).backward()
        gradients.append([own.grad, *(parameter.grad for parameter in attention.parameters())])
    assert len(selections) == 3
    assert all(torch.equal(selections[0], other) for other in selections)
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, plain)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_a_compiled_layer_is_the_layer(implementation: str) -> None:
    torch._dynamo.reset()
    results = []
    for compile_it in (False, True):
        attention, hidden = layer(implementation), torch.randn(12, 48, generator=torch.Generator().manual_seed(1))
        hidden.requires_grad_()
        run = torch.compile(attention, backend="aot_eager") if compile_it else attention
        output = run(hidden, context(LENGTHS[0]))
        (output.hidden.square().sum() + output.losses["indexer_kl"]).backward()
        results.append([output.selection, output.hidden, hidden.grad, *(p.grad for p in attention.parameters())])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
