"""Banded attention in chunks against the mask written out, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from keyekit.batch import Segments
from keyekit.nn.attention.windowed import computed_pairs, windowed_attention


def by_mask(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, window: int, sinks: int, logits: Tensor | None
) -> Tensor:
    outputs = []
    queries, keys, values = (
        query.split(segments.lengths),
        key.split(segments.key_lengths),
        value.split(segments.key_lengths),
    )
    for own, seen_key, seen_value in zip(queries, keys, values, strict=True):
        repeats = query.shape[1] // key.shape[1]
        seen_key, seen_value = (x.repeat_interleave(repeats, 1) for x in (seen_key, seen_value))
        scores = torch.einsum("thk,shk->hts", own, seen_key) * query.shape[-1] ** -0.5
        position = torch.arange(len(seen_key) - len(own), len(seen_key))[:, None]
        column = torch.arange(len(seen_key))
        weights = scores.exp() * ((column <= position) & ((position - column < window) | (column < sinks)))
        total = weights.sum(-1, keepdim=True) + (0 if logits is None else logits.exp()[:, None, None])
        outputs.append(torch.einsum("hts,shk->thk", weights / total, seen_value))
    return torch.cat(outputs)


CASES = {
    "several chunks": ([200, 1, 67, 64, 0, 129], None),
    "equal": ([130, 130], None),
    "decoding": ([1, 1, 1], [9, 3, 300]),
    "continued": ([2, 150, 1, 90], [9, 180, 30, 90]),
}


@pytest.mark.parametrize("logits", [False, True], ids=["", "sink logits"])
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (12, 3), (60, 4), (64, 0), (70, 10), (1000, 2)])
@pytest.mark.parametrize("case", CASES)
def test_chunks_equal_the_mask_with_gradients(case: str, window: int, sinks: int, logits: bool) -> None:
    torch.manual_seed(0)
    segments = Segments.of(*CASES[case])
    query = torch.randn(segments.total, 4, 8, dtype=torch.float64, requires_grad=True)
    key = torch.randn(segments.key_total, 2, 8, dtype=torch.float64, requires_grad=True)
    value = torch.randn(segments.key_total, 2, 8, dtype=torch.float64, requires_grad=True)
    sink = torch.randn(4, dtype=torch.float64, requires_grad=True) if logits else None
    ours = windowed_attention(query, key, value, segments, window=window, sinks=sinks, sink_logits=sink)
    theirs = by_mask(query, key, value, segments, window, sinks, sink)
    torch.testing.assert_close(ours, theirs)
    tensors = [tensor for tensor in (query, key, value, sink) if tensor is not None]
    weight = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), tensors),
        torch.autograd.grad((theirs * weight).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_cost_is_linear_in_the_length() -> None:
    short, long = (computed_pairs((length,), (length,), 128, 4) for length in (10_000, 80_000))
    assert long / short == pytest.approx(8, rel=0.02)
    assert short < 3 * 10_000 * 132


def test_what_autograd_keeps_is_linear_in_the_length() -> None:
    kept = []
    for length in (512, 4096):
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        query = torch.randn(length, 2, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            mixed = windowed_attention(query, query * 1, query * 1, Segments.of([length]), window=32, sinks=2)
        assert mixed.shape == query.shape
        kept.append(sum(sizes.values()))
    assert kept[1] < 9 * kept[0]


def test_a_plan_made_while_evaluating_serves_training() -> None:
    segments, query = Segments.of([5, 90, 2]), torch.randn(97, 2, 8)
    with torch.inference_mode():
        expected = windowed_attention(query, query, query, segments, window=4).clone()
    query.requires_grad_()
    result = windowed_attention(query, query, query, segments, window=4)
    result.sum().backward()
    torch.testing.assert_close(result, expected)


def test_no_tokens_give_no_result() -> None:
    nothing = torch.zeros(0, 2, 8)
    assert windowed_attention(nothing, nothing, nothing, Segments.of([0, 0]), window=4).shape == (0, 2, 8)
