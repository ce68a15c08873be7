"""Offsets past two to the thirty-first: tensors of so many numbers, of which a few rows are touched and the rest never exists.

Memory that nobody writes is not there: the system hands out zeros when a page is first read. Only the interpreter would touch
it, by copying every tensor back onto itself after a launch, which is left out here.
"""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.attention_backward import query_backward, union_backward
from keyekit_kernels.dsa.attention_forward import query_forward, union_forward
from keyekit_kernels.dsa.indexer import index_logits
from keyekit_kernels.dsa.kl import sparse_kl
from keyekit_kernels.dsa.kl_dense import attention_log_normaliser, dense_kl
from keyekit_kernels.dsa.paged_attention import paged_attention
from keyekit_kernels.dsa.selection import index_topk
from keyekit_kernels.dsa.union import build_union

pytestmark = pytest.mark.interpreter

WIDTH = 128
ROWS = 2**24 + 64  # times 128 numbers: the last rows begin past 2 ** 31
LATE = 8
"""Rows at the very end that are used, beside the first ones."""


@pytest.fixture(autouse=True)
def _memory_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if not hasattr(interpreter.GridExecutor, "_restore_args_dev"):
        pytest.skip("this interpreter touches all memory")
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
    zeros = torch.zeros_like

    def untouched(tensor: torch.Tensor, **options) -> torch.Tensor:
        return vast(*tensor.shape) if tensor.numel() >= 2**31 else zeros(tensor, **options)

    monkeypatch.setattr(torch, "zeros_like", untouched)


def vast(*shape: int) -> torch.Tensor:
    """Zeros that do not exist yet."""
    try:
        return torch.empty(shape)
    except RuntimeError as problem:
        pytest.skip(f"no address space: {problem}")


def filled(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A vast tensor with random first and last rows, and those rows: row -k of the small one is row -k of the vast one."""
    large, small = vast(*shape), torch.randn(2 * LATE, *shape[1:])
    large[:LATE], large[-LATE:] = small[:LATE], small[LATE:]
    return large, small


def selection() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the vast tensor, and of the small one."""
    small = torch.tensor([[1, 5, 9, 15], [0, 8, 14, -1], [12, 13, 14, 15]], dtype=torch.int32)
    return torch.where(small >= LATE, small + (ROWS - 2 * LATE), small), small


def near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-5)


def ends(large: torch.Tensor) -> torch.Tensor:
    return torch.cat([large[:LATE], large[-LATE:]])


@pytest.mark.parametrize("group", [None, 2], ids=["query by query", "over unions"])
def test_attention_reaches_late_keys_in_both_directions(group: int | None) -> None:
    (key, few_keys), (value, few_values) = filled(ROWS, 1, WIDTH), filled(ROWS, 1, WIDTH)
    query, grad = torch.randn(3, 2, WIDTH), torch.randn(3, 2, WIDTH)
    indices, small = selection()
    inputs = [tensor.double().requires_grad_() for tensor in (query, few_keys, few_values)]
    expected, _ = reference.attention_over_selection(*inputs, small, 0.1)
    gradients = torch.autograd.grad(expected, inputs, grad.double())
    if group is None:
        counts = (indices >= 0).sum(1, dtype=torch.int32)
        results = query_forward(query, key, value, indices, counts, 0.1)
        back = [query_backward(grad, query, key, value, *results, indices, counts, 0.1)]
    else:
        union = build_union(indices, [3], [ROWS], group)
        results = union_forward(query, key, value, union, 0.1)
        back = [union_backward(grad, query, key, value, *results, union, 0.1)]
    near(results[0], expected)
    for by_query, by_key, by_value in back:
        near(by_query, gradients[0])
        near(ends(by_key), gradients[1])
        near(ends(by_value), gradients[2])


def test_decoding_reaches_late_slots() -> None:
    key, small = filled(ROWS, 1, WIDTH)
    pages = torch.tensor([[0, ROWS // 64 - 1]], dtype=torch.int32)
    positions = torch.tensor([[1, 5, 127 - 4, 127]], dtype=torch.int32)
    query = torch.randn(1, 2, WIDTH)
    lengths = torch.tensor([128], dtype=torch.int32)
    output, _ = paged_attention(query, key, key, positions, pages, lengths, 0.1)
    chosen = torch.tensor([[1, 5, 11, 15]], dtype=torch.int32)
    near(output, reference.attention_over_selection(query, small, small, chosen, 0.1)[0])


def test_divergences_reach_late_keys() -> None:
    (index_key, few_index_keys), (key, few_keys) = filled(ROWS, WIDTH), filled(ROWS, 1, WIDTH)
    index_query, gate, query = torch.randn(3, 2, WIDTH) * 0.1, torch.randn(3, 2), torch.randn(3, 2, WIDTH)
    indices, small = selection()
    inputs = [tensor.double().requires_grad_() for tensor in (index_query, few_index_keys, gate)]
    target = reference.attention_target(query.double(), few_keys.double(), small, 0.1)
    loss = reference.kl_over_selection(reference.scores_at(*inputs, small), target, small)
    gradients = torch.autograd.grad(loss.sum(), inputs)
    _, lse = reference.attention_over_selection(query, few_keys, few_keys, small, 0.1)
    counts = (indices >= 0).sum(1, dtype=torch.int32)
    ours, back = sparse_kl(index_query, index_key, gate, query, key, lse, indices, counts, 0.1)
    near(ours, loss)
    near(ends(back[1]), gradients[1])

    lengths = (0, 3), (ROWS - LATE, LATE)  # a sequence of keys alone, and one at the end
    rows = torch.tensor([[*range(8, 14), -1, -1], [*range(8, 15), -1], [*range(8, 16)]], dtype=torch.int32)
    target = reference.attention_target(query.double(), few_keys.double(), rows, 0.1)
    loss = reference.kl_over_selection(reference.scores_at(*inputs, rows), target, rows)
    gradients = torch.autograd.grad(loss.sum(), inputs)
    lse = attention_log_normaliser(query, key, *lengths, 0.1)
    ours, back = dense_kl(index_query, index_key, gate, query, key, lse, *lengths, 0.1)
    near(ours, loss)
    near(ends(back[1]), gradients[1])


def test_the_indexer_reaches_late_keys_and_late_queries() -> None:
    key, small = filled(ROWS, WIDTH)
    query, gate = torch.randn(6, 1, WIDTH), torch.ones(6, 1)
    chosen = index_topk(query, key, gate, (0, 6), (ROWS - LATE, LATE), 4)
    expected = reference.select_topk(reference.indexer_scores(query, small[LATE:], gate), torch.arange(3, 9), 4)
    assert torch.equal(chosen, torch.where(expected < 0, expected, expected + (ROWS - LATE)))

    queries, few = filled(ROWS, 1, WIDTH)
    gates, rows = torch.ones(ROWS, 1), range(ROWS - 3, ROWS)
    out = torch.empty(3, 64), torch.empty(3, 8)
    lengths = (ROWS - 4, 4), (ROWS - 4, 4)
    scores, _ = index_logits(queries, queries[:, 0], gates, *lengths, rows, out=out)
    expected = reference.indexer_scores(few[-3:], few[-4:, 0], gates[-3:])
    near(scores[2, :4], expected[2])
