"""Closed-form gradients against autograd of the definition, in float64, and the identity of the sum over groups."""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.reference_gradients import (
    attention_gradients,
    causal_selection,
    dense_kl,
    kl_gradients,
    sparse_kl,
)

LIMIT = {"rtol": 1e-12, "atol": 1e-12}
QUERY_LENGTHS, KEY_LENGTHS = (4, 1, 0, 3), (4, 1, 2, 6)


def indexer(num_queries: int, num_keys: int, heads: int = 3, width: int = 8) -> list[torch.Tensor]:
    shapes = (num_queries, heads, width), (num_keys, width), (num_queries, heads)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def attention(num_queries: int, num_keys: int, heads: int, groups: int, width: int = 8) -> list[torch.Tensor]:
    shapes = (num_queries, heads, width), (num_keys, groups, width), (num_keys, groups, width)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def selection(num_queries: int, num_keys: int, topk: int) -> torch.Tensor:
    """Selections of every length, an empty one included."""
    visible = torch.arange(num_queries) % (num_keys + 1)
    return reference.select_topk(torch.randn(num_queries, num_keys), visible, topk)


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 2), (8, 1), (6, 6)])
def test_gradients_of_attention(heads: int, groups: int) -> None:
    inputs = attention(9, 11, heads, groups)
    indices = selection(9, 11, topk=5)
    output, lse = reference.attention_over_selection(*inputs, indices, 0.3)
    grad = torch.randn_like(output)
    expected = torch.autograd.grad(output, inputs, grad)
    with torch.no_grad():
        ours = attention_gradients(grad, *inputs, output, lse, indices, 0.3)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **LIMIT)


def expected_kl(inputs, query, key, indices, scale, weight=None):
    loss = reference.kl_over_selection(
        reference.scores_at(*inputs, indices), reference.attention_target(query, key, indices, scale), indices
    )
    loss = loss if weight is None else loss * weight
    return loss.detach(), torch.autograd.grad(loss.sum(), inputs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 256])
def test_sparse_divergence(weighted: bool, chunk: int) -> None:
    inputs, (query, key, _) = indexer(9, 11), attention(9, 11, 4, 2)
    indices = selection(9, 11, topk=5)
    weight = torch.randn(9, dtype=torch.float64) if weighted else None
    loss, gradients = sparse_kl(*inputs, query, key, indices, 0.3, weight, chunk)
    expected, theirs = expected_kl(inputs, query, key, indices, 0.3, weight)
    torch.testing.assert_close(loss, expected, **LIMIT)
    for mine, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(mine, other, **LIMIT)
    assert loss[0] == 0
    assert not gradients[0][0].any()


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_dense_divergence_of_packed_sequences(chunk: int) -> None:
    tokens, keys = sum(QUERY_LENGTHS) + 2, sum(KEY_LENGTHS)  # two rows of padding behind the sequences
    inputs, (query, key, _) = indexer(tokens, keys), attention(tokens, keys, 4, 2)
    indices = torch.cat([causal_selection(QUERY_LENGTHS, KEY_LENGTHS), torch.full((2, max(KEY_LENGTHS)), -1)]).int()
    loss, gradients = dense_kl(*inputs, query, key, QUERY_LENGTHS, KEY_LENGTHS, 0.3, chunk=chunk)
    expected, theirs = expected_kl(inputs, query, key, indices, 0.3)
    torch.testing.assert_close(loss, expected, **LIMIT)
    for mine, other in zip(gradients, theirs, strict=True):
        torch.testing.assert_close(mine, other, **LIMIT)


def test_the_selection_of_all_visible_keys_is_causal_and_packed() -> None:
    chosen = causal_selection(QUERY_LENGTHS, KEY_LENGTHS)
    assert chosen.dtype == torch.int32
    rows = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [4], [7, 8, 9, 10], [7, 8, 9, 10, 11], [7, 8, 9, 10, 11, 12]]
    assert chosen.tolist() == [row + [-1] * (6 - len(row)) for row in rows]
    assert causal_selection([], []).shape == (0, 0)
    with pytest.raises(ValueError, match="3 queries and 2 keys"):
        causal_selection([1, 3], [1, 2])


def test_dense_equals_sparse_where_every_visible_key_is_selected() -> None:
    inputs, (query, key, _) = indexer(7, 7), attention(7, 7, 4, 2)
    dense = dense_kl(*inputs, query, key, [7], [7], 0.3)
    sparse = sparse_kl(*inputs, query, key, causal_selection([7], [7]), 0.3)
    torch.testing.assert_close(dense[0], sparse[0], **LIMIT)
    for one, other in zip(dense[1], sparse[1], strict=True):
        torch.testing.assert_close(one, other, **LIMIT)


@pytest.mark.parametrize("groups", [2, 4])
def test_sum_over_groups_has_the_gradients_of_the_mean_teacher_times_the_groups(groups: int) -> None:
    # Keye-VL-2.0 sheet 9.3 sums KL(p_g || q) over the groups g; dsa-kernels sheet 2.2 item "verified".
    inputs, (query, key, _) = indexer(6, 9), attention(6, 9, 8, groups)
    indices = selection(6, 9, topk=4)
    heads = 8 // groups
    summed = torch.zeros((), dtype=torch.float64)
    for group in range(groups):
        own = query[:, group * heads : (group + 1) * heads], key[:, group : group + 1]
        target = reference.attention_target(*own, indices, 0.3)
        summed = summed + reference.kl_over_selection(reference.scores_at(*inputs, indices), target, indices).sum()
    by_group = torch.autograd.grad(summed, inputs)
    target = reference.attention_target(query, key, indices, 0.3)
    with torch.no_grad():
        by_mean = kl_gradients(*inputs, target, indices)
    for one, other in zip(by_group, by_mean, strict=True):
        torch.testing.assert_close(one, groups * other, **LIMIT)
