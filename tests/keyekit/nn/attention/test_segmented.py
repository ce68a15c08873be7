"""Packed attention equals attention of each segment alone."""

import pytest
import torch
from torch.nn import functional

from keyekit.batch import Segments
from keyekit.nn.attention.segmented import segmented_attention


def one_by_one(query, key, value, segments, causal):
    outputs, start, key_start = [], 0, 0
    for length, key_length in zip(segments.lengths, segments.key_lengths, strict=True):
        q, k, v = (
            query[start : start + length],
            key[key_start : key_start + key_length],
            value[key_start : key_start + key_length],
        )
        groups = query.shape[1] // key.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        logits = torch.einsum("thk,shk->hts", q, k) * q.shape[-1] ** -0.5
        if causal:
            future = torch.ones(length, key_length, dtype=torch.bool).triu(key_length - length + 1)
            logits = logits.masked_fill(future, -torch.inf)
        outputs.append(torch.einsum("hts,shk->thk", logits.softmax(-1), v))
        start, key_start = start + length, key_start + key_length
    return torch.cat(outputs)


CASES = {
    "mixed": ([5, 1, 17, 3, 40, 2, 16], None),
    "equal": ([6, 6, 6], None),
    "with an empty one": ([4, 0, 4, 7], None),
    "decoding": ([1, 1, 1], [9, 3, 30]),
    "continued": ([2, 5, 1], [9, 5, 30]),
    "pooling": ([1, 1], [6, 4]),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_packed_equals_unpacked_with_gradients(case: str, causal: bool) -> None:
    torch.manual_seed(0)
    segments = Segments.of(*CASES[case])
    query = torch.randn(segments.total, 4, 8, dtype=torch.float64, requires_grad=True)
    key = torch.randn(segments.key_total, 2, 8, dtype=torch.float64, requires_grad=True)
    value = torch.randn(segments.key_total, 2, 8, dtype=torch.float64, requires_grad=True)
    ours = segmented_attention(query, key, value, segments, causal=causal)
    theirs = one_by_one(query, key, value, segments, causal)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    tensors = (query, key, value)
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), tensors),
        torch.autograd.grad((theirs * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_scale_is_respected() -> None:
    query, key = torch.randn(4, 2, 8), torch.randn(4, 2, 8)
    segments = Segments.of([4])
    expected = functional.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in (query, key, key)), scale=2.0
    ).transpose(0, 1)
    torch.testing.assert_close(segmented_attention(query, key, key, segments, causal=False, scale=2.0), expected)


def test_a_plan_made_while_evaluating_serves_training() -> None:
    segments = Segments.of([5, 9, 2])
    query = torch.randn(16, 2, 8)
    with torch.inference_mode():
        expected = segmented_attention(query, query, query, segments, causal=True).clone()
    query.requires_grad_()
    result = segmented_attention(query, query, query, segments, causal=True)
    result.sum().backward()
    torch.testing.assert_close(result, expected)
