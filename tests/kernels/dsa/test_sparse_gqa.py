"""The Triton path behind the public door against the torch path: same outputs, same gradients, clear refusals."""

import logging

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from keyekit_kernels import dsa
from keyekit_kernels.dsa import dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (5, 1, 6)


def tensors(width: int = 16, heads: int = 4, groups: int = 2):
    torch.manual_seed(0)
    shapes = {"query": (12, heads, width), "key": (12, groups, width), "value": (12, groups, width)}
    made = {name: torch.randn(shape, device=DEVICE, requires_grad=True) for name, shape in shapes.items()}
    index = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in ((12, 2, 16), (12, 16), (12, 2))]
    return made, index


def whole_layer(implementation: str, lengths_too: bool, deterministic: bool = False):
    """Select, attend, compare: outputs and gradients of everything."""
    made, index = tensors()
    indices = dsa.index_topk(*index, LENGTHS, LENGTHS, 3, implementation)
    lengths = (LENGTHS, LENGTHS) if lengths_too else (None, None)
    output, lse = dsa.sparse_attention(*made.values(), indices, 0.25, implementation, *lengths, deterministic)
    divergence = dsa.indexer_kl(*index, made["query"], made["key"], indices, 0.25, implementation, lse)
    weight = torch.linspace(-1, 1, output.numel(), device=DEVICE).view_as(output)
    ((output * weight).sum() + divergence.sum()).backward()
    return indices, output, lse, divergence, *(tensor.grad for tensor in (*made.values(), *index))


@pytest.mark.parametrize(("lengths_too", "deterministic"), [(False, False), (True, False), (True, True)])
def test_triton_equals_torch_from_selection_to_gradients(lengths_too: bool, deterministic: bool) -> None:
    for ours, theirs in zip(
        whole_layer("triton", lengths_too, deterministic), whole_layer("torch", False), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_keys_are_shared_where_neighbours_agree_and_it_is_said(caplog, monkeypatch) -> None:
    made, _ = tensors()
    apart = torch.arange(12, dtype=torch.int32, device=DEVICE)[:, None]
    same = torch.zeros(12, 1, dtype=torch.int32, device=DEVICE)
    monkeypatch.setattr(dispatch, "_variants", {})
    with caplog.at_level(logging.INFO):
        for indices in (apart, apart, same, same):
            dsa.sparse_attention(*made.values(), indices, 0.25, "triton", (12,), (12,))
    assert [record.getMessage() for record in caplog.records if "U/k" in record.getMessage()] == [
        "sparse attention runs query by query: U/k is about 6.0",
        "sparse attention runs over unions: U/k is about 1.0",
    ]


def test_under_checkpointing_the_gradients_are_the_same() -> None:
    made, _ = tensors()
    indices = torch.arange(12, dtype=torch.int32, device=DEVICE)[:, None]

    def attend(query, key, value):
        return dsa.sparse_attention(query, key, value, indices, 0.25, "triton", LENGTHS, LENGTHS)[0]

    plain = torch.autograd.grad(attend(*made.values()).square().sum(), list(made.values()))
    again = torch.autograd.grad(
        checkpoint(attend, *made.values(), use_reentrant=False).square().sum(), list(made.values())
    )
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)
