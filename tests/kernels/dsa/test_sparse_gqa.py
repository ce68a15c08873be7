"""The Triton path behind the public door against the torch path: same outputs, same gradients, clear refusals."""

import logging

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from keyekit_kernels import dsa
from keyekit_kernels.dsa.functional import _announce
from keyekit_kernels.dsa.sparse_gqa import check_selection

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


def test_keys_are_shared_where_neighbours_agree_and_it_is_said(caplog) -> None:
    made, _ = tensors()
    apart = torch.arange(12, dtype=torch.int32, device=DEVICE)[:, None]
    same = torch.zeros(12, 1, dtype=torch.int32, device=DEVICE)
    _announce.cache_clear()
    with caplog.at_level(logging.INFO):
        for indices in (apart, same):
            dsa.sparse_attention(*made.values(), indices, 0.25, "triton", (12,), (12,))
    assert [record.getMessage() for record in caplog.records if "U/k" in record.getMessage()] == [
        "sparse attention runs query by query: U/k is about 12.0",
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


def test_triton_without_a_gpu_is_refused(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dsa.resolve_implementation.cache_clear()
    with pytest.raises(ValueError, match="needs a GPU, the tensors are on cpu"):
        dsa.resolve_implementation("triton", "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m, i: (m | {"query": torch.zeros(12, 4, 24)}, i),
            "heads of width 24: the kernels take 16, 32, 64, 128",
        ),
        (lambda m, i: (m | {"query": torch.zeros(12, 3, 16)}, i), "3 heads, which do not divide into the 2 groups"),
        (lambda m, i: (m | {"value": torch.zeros(11, 2, 16)}, i), r"value \[11, 2, 16\]"),
        (lambda m, i: (m | {"key": torch.zeros(12, 2, 16).double()}, i), "give all in one of float32"),
        (lambda m, i: (m, i.long()), r"give \[12, N\] int32"),
    ],
)
def test_what_the_kernels_cannot_take_is_named(change, message: str) -> None:
    made, _ = tensors()
    indices = torch.zeros(12, 1, dtype=torch.int32)
    inputs, indices = change({name: tensor.detach().cpu() for name, tensor in made.items()}, indices)
    inputs, indices = {name: tensor.to(DEVICE) for name, tensor in inputs.items()}, indices.to(DEVICE)
    with pytest.raises(ValueError, match=message):
        dsa.sparse_attention(*inputs.values(), indices, 0.25, "triton")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([[4, 3, -1]], "not ascending"),
        ([[3, 3, -1]], "a key twice"),
        ([[3, -1, 4]], "a gap"),
        ([[3, 5, -1]], "in the future"),
        ([[1, 3, -1]], "of another sequence"),
        ([[3, -2, -1]], "below -1"),
    ],
)
def test_indices_that_no_selection_makes_are_described(rows, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_selection(torch.tensor(rows, dtype=torch.int32), torch.tensor([3]), torch.tensor([2]))
    check_selection(torch.tensor([[2, 4, -1]], dtype=torch.int32), torch.tensor([3]), torch.tensor([2]))
