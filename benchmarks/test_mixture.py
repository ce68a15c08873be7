"""The mixture of experts: one grouped product against one per expert, and the block against Qwen3-MoE's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from keyekit.nn.moe.mixture import MixtureOfExperts, grouped_product, product_by_product
from keyekit.nn.rope.rotary import MultimodalRope
from keyekit.nn.spec import LayerSpec


@pytest.fixture(scope="module")
def sizes(device: torch.device) -> dict[str, int]:
    if device.type == "cpu":
        return {"tokens": 512, "dim": 128, "experts": 32, "active": 4, "expert_dim": 64}
    return {"tokens": 8192, "dim": 2048, "experts": 128, "active": 8, "expert_dim": 768}


@pytest.fixture(scope="module")
def products(sizes, device, dtype) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    visits, experts = sizes["tokens"] * sizes["active"], sizes["experts"]
    choices = torch.rand(experts, device=device).multinomial(visits, replacement=True)  # uneven, as routers are
    counts = torch.bincount(choices, minlength=experts)
    rows = torch.randn(visits, sizes["dim"], device=device)
    matrices = torch.randn(experts, sizes["dim"], 2 * sizes["expert_dim"], device=device) * 0.05
    expected = product_by_product(rows, matrices, counts)
    torch.testing.assert_close(grouped_product(rows, matrices, counts), expected, rtol=1e-3, atol=1e-3)
    leaves = [leaf.to(dtype).requires_grad_() for leaf in (rows, matrices)]

    def step(multiply: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        torch.autograd.grad(multiply(*leaves, counts).square().mean(), leaves)

    return {"keyekit": lambda: step(grouped_product), "peer": lambda: step(product_by_product)}


def test_product(products, timed, row: str) -> None:
    timed("grouped_product, forward and backward", products[row], peer="product_by_product, a loop over experts")


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
