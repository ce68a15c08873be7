"""The mixture of experts: the sorted segments against the loop that defines them, and the block against Qwen3-MoE's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from keyekit.nn.moe.base import Routing
from keyekit.nn.moe.experts import Experts
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.nn.moe.scoring import normalized, routing_statistics
from keyekit.nn.rope.rotary import MultimodalRope
from keyekit.nn.spec import LayerSpec


@pytest.fixture(scope="module")
def sizes(device: torch.device) -> dict[str, int]:
    if device.type == "cpu":
        return {"tokens": 4096, "dim": 256, "experts": 32, "active": 4, "expert_dim": 128}
    return {"tokens": 8192, "dim": 2048, "experts": 128, "active": 8, "expert_dim": 768}


@pytest.fixture(scope="module")
def steps(sizes, device, dtype) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    # Uneven, as routers are: the scores of some experts are higher for all tokens.
    scores = (torch.randn(sizes["tokens"], sizes["experts"]) + torch.randn(sizes["experts"])).softmax(-1).to(device)
    best = scores.topk(sizes["active"], dim=-1)
    statistics = routing_statistics(scores, best.indices, None)
    routing = Routing(weights=normalized(best.values), experts=best.indices, statistics=statistics)
    experts = Experts(sizes["experts"], sizes["dim"], sizes["expert_dim"]).to(device)
    loop = Experts(sizes["experts"], sizes["dim"], sizes["expert_dim"], "loop").to(device)
    loop.load_state_dict(experts.state_dict())
    hidden = torch.randn(sizes["tokens"], sizes["dim"], device=device)
    torch.testing.assert_close(experts(hidden, routing), loop(hidden, routing), rtol=1e-3, atol=1e-4)
    hidden = hidden.to(dtype).requires_grad_()

    def step(module: Experts) -> None:
        module.to(dtype)
        torch.autograd.grad(module(hidden, routing).square().mean(), (hidden, *module.parameters()))

    return {"keyekit": lambda: step(experts), "peer": lambda: step(loop)}


def test_experts(steps, timed, row: str) -> None:
    timed("Experts, forward and backward", steps[row], peer="the loop over experts that defines them")


@pytest.fixture(scope="module", params=["eager", "grouped_mm"])
def blocks(request, sizes, training_step, device, dtype) -> dict[str, Callable]:
    torch.manual_seed(0)
    rope = MultimodalRope(head_dim=32, section=(4, 6, 6))
    unused = {"layer": 0, "num_heads": 1, "num_groups": 1, "head_dim": 32, "hidden_dim": 1, "norm_eps": 1e-6}
    spec = LayerSpec(dim=sizes["dim"], rope=rope, **unused)
    mixture = MixtureOfExperts(spec, sizes["experts"], sizes["active"], sizes["expert_dim"]).to(device)
    config = Qwen3MoeConfig(
        hidden_size=sizes["dim"],
        moe_intermediate_size=sizes["expert_dim"],
        num_experts=sizes["experts"],
        num_experts_per_tok=sizes["active"],
        norm_topk_prob=True,
        experts_implementation=request.param,
    )
    reference = Qwen3MoeSparseMoeBlock(config).to(device)
    weights = mixture.state_dict()
    transposed = {name: weights[name].transpose(1, 2) for name in weights if "experts." in name}
    reference.load_state_dict(weights | transposed)
    hidden = torch.randn(sizes["tokens"], sizes["dim"], device=device)

    def ours() -> Tensor:
        return mixture(hidden).hidden

    def theirs() -> Tensor:
        return reference(hidden[None])[0]

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-4)
    mixture.to(dtype), reference.to(dtype)
    hidden = hidden.to(dtype).requires_grad_()
    calls = {"keyekit": lambda: training_step(mixture, ours), "peer": lambda: training_step(reference, theirs)}
    return calls | {"name": f"transformers Qwen3MoeSparseMoeBlock, {request.param} experts"}


def test_block(blocks, timed, row: str) -> None:
    timed("MixtureOfExperts, forward and backward", blocks[row], peer=blocks["name"])
