"""The dense divergence in PyTorch against the definition: losses and all gradients in float64, packed, ragged and chunked."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from keyekit_kernels import dsa
from keyekit_kernels.dsa import kl_dense_torch, reference_gradients
from keyekit_kernels.dsa.reference import indexer_scores

NAMES = ("index query", "index key", "gate")
# name: heads, groups, indexer heads, queries and keys of each sequence, rows of padding behind them
CASES = {
    "ragged": (4, 2, 3, (18, 1, 0, 3), (18, 1, 0, 3), 0),
    "padding": (2, 2, 2, (5, 2), (5, 2), 3),
    "eight heads a group": (8, 1, 4, (6,), (6,), 0),
    "more keys than queries": (2, 1, 4, (2, 0, 17), (35, 2, 20), 1),
    "empty": (2, 1, 2, (), (), 2),
}


def problem(case: str, dtype: torch.dtype = torch.float64):
    heads, groups, index_heads, query_lengths, key_lengths, padding = CASES[case]
    generator = torch.Generator().manual_seed(0)
    tokens, keys = sum(query_lengths) + padding, sum(key_lengths)
    shapes = (tokens, index_heads, 8), (keys, 8), (tokens, index_heads), (tokens, heads, 16), (keys, groups, 16)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    return tensors[:3], tensors[3:], query_lengths, key_lengths, 0.25


@pytest.mark.parametrize("elements", [2**24, 200], ids=["whole sequences", "chunks"])
@pytest.mark.parametrize("weighted", [False, True], ids=["sum", "weighted"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_definition(case: str, weighted: bool, elements: int, monkeypatch) -> None:
    monkeypatch.setattr(kl_dense_torch, "_ELEMENTS", elements)
    indexer, attention, *lengths, scale = problem(case)
    weight = torch.linspace(-1, 2, len(indexer[0]), dtype=torch.float64) if weighted else None
    expected, gradients = reference_gradients.dense_kl(*indexer, *attention, *lengths, scale, weight)
    inputs = [tensor.requires_grad_() for tensor in indexer]
    query, key = (tensor.requires_grad_() for tensor in attention)
    losses = dsa.indexer_kl_dense(*inputs, query, key, *lengths, scale, "torch")
    losses = losses if weight is None else losses * weight
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    losses.sum().backward()
    assert query.grad is None
    assert key.grad is None
    for name, tensor, theirs in zip(NAMES, inputs, gradients, strict=True):
        torch.testing.assert_close(tensor.grad, theirs, rtol=1e-12, atol=1e-12, msg=f"gradient of {name}")


def test_half_precision_is_widened_and_gradients_come_back_in_it() -> None:
    indexer, attention, *lengths, scale = problem("ragged", torch.bfloat16)
    expected, gradients = reference_gradients.dense_kl(*indexer, *attention, *lengths, scale)
    inputs = [tensor.requires_grad_() for tensor in indexer]
    losses = dsa.indexer_kl_dense(*inputs, *attention, *lengths, scale, "torch")
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    losses.sum().backward()
    for tensor, theirs in zip(inputs, gradients, strict=True):
        assert tensor.grad.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.grad, theirs.to(torch.bfloat16), rtol=1e-2, atol=1e-3)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements that any operation returned in one tensor."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [tensor.numel() for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_no_tensor_has_the_size_of_the_matrix(monkeypatch) -> None:
    length, limit = 64, 1024
    monkeypatch.setattr(kl_dense_torch, "_ELEMENTS", limit)
    shapes = (length, 2, 8), (length, 8), (length, 2), (length, 2, 8), (length, 1, 8)
    index_query, index_key, gate, query, key = (torch.randn(shape) for shape in shapes)
    inputs = [tensor.requires_grad_() for tensor in (index_query, index_key, gate)]
    with LargestTensor() as ours:
        dsa.indexer_kl_dense(*inputs, query, key, [length], [length], 0.35, "torch").mean().backward()
    assert ours.elements == limit < length * length
    with LargestTensor() as plain:
        indexer_scores(*inputs)
    assert plain.elements == 2 * length * length


def test_the_sum_over_groups_has_their_number_times_the_gradient_of_the_mean_teacher() -> None:
    """Keye-VL-2.0 sheet 9.3 adds up one divergence per key/value group; dsa-kernels sheet 2.2."""
    torch.manual_seed(0)
    length, groups, per_group = 13, 4, 2
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in ((length, 3, 8), (length, 8), (length, 3))]
    query = torch.randn(length, groups * per_group, 16, dtype=torch.float64)
    key = torch.randn(length, groups, 16, dtype=torch.float64)
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    mean_teacher = dsa.indexer_kl_dense(*ours, query, key, [length], [length], 0.25, "torch").sum()
    mean_teacher.backward()
    summed = [tensor.clone().requires_grad_() for tensor in inputs]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    student = indexer_scores(*summed).masked_fill(hidden, -torch.inf).log_softmax(-1).masked_fill(hidden, 0.0)
    total = torch.zeros((), dtype=torch.float64)
    for group in range(groups):
        heads = query[:, group * per_group : (group + 1) * per_group]
        logits = torch.einsum("thk,sk->hts", heads, key[:, group]) * 0.25
        teacher = logits.masked_fill(hidden, -torch.inf).softmax(-1).mean(0)
        total = total + (torch.xlogy(teacher, teacher) - teacher * student).sum()
    total.backward()
    assert total > groups * mean_teacher  # apart by the disagreement of the groups, which has no gradient
    for mine, theirs in zip(ours, summed, strict=True):
        torch.testing.assert_close(groups * mine.grad, theirs.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("query_lengths", "key_lengths", "message"),
    [
        ((8,), (7,), "query_lengths sum to 8, but there are 7 rows"),
        ((7,), (9,), "key_lengths sum to 9, but there are 7 rows"),
        ((2, 3), (5, 2), "3 queries and 2 keys"),
    ],
)
def test_lengths_that_do_not_fit_are_named(query_lengths, key_lengths, message: str) -> None:
    tensors = [torch.randn(shape) for shape in ((7, 2, 8), (7, 8), (7, 2), (7, 2, 8), (7, 1, 8))]
    with pytest.raises(ValueError, match=message):
        dsa.indexer_kl_dense(*tensors, query_lengths, key_lengths, 0.25, "torch")
