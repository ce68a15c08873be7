"""Triton attention over selected keys against the definition: outputs and all gradients, query by query and over unions."""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.attention_backward import query_backward, union_backward
from keyekit_kernels.dsa.attention_forward import query_forward, union_forward
from keyekit_kernels.dsa.union import build_union

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# name: heads, groups, width, queries and keys of each sequence, keys selected
CASES = {
    "two sequences": (4, 2, 16, (5, 3), (5, 3), 3),
    "one head a group": (2, 2, 32, (4,), (4,), 20),
    "three heads a group": (3, 1, 16, (6,), (6,), 4),
    "four heads a group": (8, 2, 16, (3,), (5,), 3),
    "eight heads a group": (8, 1, 16, (3,), (3,), 2),
    "sixteen heads a group": (16, 1, 16, (3,), (4,), 2),
    "twenty heads a group": (20, 1, 16, (3,), (4,), 2),
    "length one and none": (2, 1, 16, (1, 0, 2), (1, 2, 2), 2),
    "more keys than queries": (2, 1, 16, (2, 1), (21, 19), 18),
    "heads of 64": (2, 1, 64, (3,), (3,), 2),
    "heads of 128, as published": (32, 4, 128, (3,), (20,), 18),
}


def problem(case: str, dtype: torch.dtype):
    heads, groups, width, query_lengths, key_lengths, topk = CASES[case]
    torch.manual_seed(0)
    tokens, keys = sum(query_lengths), sum(key_lengths)
    shapes = (tokens, heads, width), (keys, groups, width), (keys, groups, width), (tokens, heads, width)
    tensors = [torch.randn(shape).to(DEVICE, dtype) for shape in shapes]
    rows, start = [], 0
    for queries, length in zip(query_lengths, key_lengths, strict=True):
        local = reference.select_topk(
            torch.randn(queries, length), torch.arange(length - queries + 1, length + 1), topk
        )
        local = torch.nn.functional.pad(local, (0, topk - local.shape[1]), value=-1)
        rows.append(torch.where(local < 0, local, local + start))
        start += length
    indices = torch.cat(rows)
    if tokens > 2:
        indices[1] = -1  # a query without any key
    return tensors, indices.to(DEVICE), query_lengths, key_lengths


def expected(tensors, indices, scale):
    query, key, value, grad = (tensor.double() for tensor in tensors)
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    output, lse = reference.attention_over_selection(*inputs, indices, scale)
    return (output.detach(), lse.detach()), torch.autograd.grad(output, inputs, grad)


def assert_near(ours, theirs, limit: float, name: str) -> None:
    error = (ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-12)
    assert error <= limit, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", [None, 1, 4, 16], ids=lambda group: f"union of {group}" if group else "by query")
def test_outputs_and_gradients_equal_the_definition(case: str, group: int | None, dtype: torch.dtype) -> None:
    tensors, indices, query_lengths, key_lengths = problem(case, dtype)
    query, key, value, grad = tensors
    scale = query.shape[2] ** -0.5
    (output, lse), gradients = expected(tensors, indices, scale)
    if group is None:
        counts = (indices >= 0).sum(1, dtype=torch.int32)
        ours = query_forward(query, key, value, indices, counts, scale)
        back = query_backward(grad, query, key, value, *ours, indices, counts, scale)
    else:
        union = build_union(indices, query_lengths, key_lengths, group)
        ours = union_forward(query, key, value, union, scale)
        back = union_backward(grad, query, key, value, *ours, union, scale)
        ordered = union_backward(grad, query, key, value, *ours, union, scale, deterministic=True)
        for name, one, other in zip(("query", "key", "value"), back, ordered, strict=True):
            assert_near(other, one.double(), 1e-5 if dtype == torch.float32 else 2e-3, f"ordered gradient of {name}")
    forward, backward = (1e-5, 1e-4) if dtype == torch.float32 else (2e-3, 4e-3)
    assert_near(ours[0], output, forward, "output")
    assert_near(ours[1], lse, forward, "log-sum-exp")
    for name, mine, theirs in zip(("query", "key", "value"), back, gradients, strict=True):
        assert mine.dtype == dtype
        assert_near(mine, theirs, backward, f"gradient of {name}")


def test_partial_rows_in_chunks_give_the_same_bits(monkeypatch) -> None:
    tensors, indices, query_lengths, key_lengths = problem("two sequences", torch.float32)
    query, key, value, grad = tensors
    union = build_union(indices, query_lengths, key_lengths, 2)
    ours = union_forward(query, key, value, union, 0.25)
    whole = union_backward(grad, query, key, value, *ours, union, 0.25, deterministic=True)
    monkeypatch.setattr("keyekit_kernels.dsa.ordered_sum.PARTIAL_BYTES", 8 * 2 * 16 * 5)
    chunked = union_backward(grad, query, key, value, *ours, union, 0.25, deterministic=True)
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
