"""Indexer kernels against the reference: scores, sub-block maxima."""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.indexer import index_logits
from keyekit_kernels.dsa.launch import Launch
from keyekit_kernels.dsa.quantization import dequantize

pytestmark = pytest.mark.interpreter

QUERIES, KEYS = (1, 7, 21, 0, 20), (1, 9, 70, 3, 20)
POISON = 7.125  # no score of whole_numbers
DTYPES = [torch.float32, torch.float16, torch.float8_e4m3fn]


def whole_numbers(dtype: torch.dtype, heads: int = 3, width: int = 32, queries=QUERIES, keys=KEYS) -> dict:
    """Inputs whose scores are exact in every dtype, with many ties; scales for eight bits."""
    total, stored = sum(queries), sum(keys)
    inputs = {
        "query": torch.randint(-3, 4, (total, heads, width)).to(dtype),
        "key": torch.randint(-3, 4, (stored, width)).to(dtype),
        "gate": torch.randint(-2, 3, (total, heads)).float(),
        "query_lengths": queries,
        "key_lengths": keys,
    }
    if dtype == torch.float8_e4m3fn:
        inputs["query_scale"] = 2.0 ** torch.randint(-2, 3, (total, heads))
        inputs["key_scale"] = 2.0 ** torch.randint(-2, 3, (stored,))
    return inputs


def wide(inputs: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and gate in float32, scales applied."""
    query, key = inputs["query"].float(), inputs["key"].float()
    if "key_scale" in inputs:
        query, key = dequantize(query, inputs["query_scale"]), dequantize(key, inputs["key_scale"])
    return query, key, inputs["gate"]


def expected_scores(inputs: dict, width: int) -> torch.Tensor:
    """Scores of every packed query for the keys of its own sequence, minus infinity elsewhere."""
    query, key, gate = wide(inputs)
    expected = torch.full((query.shape[0], width), -torch.inf)
    first, origin = 0, 0
    for queries, keys in zip(inputs["query_lengths"], inputs["key_lengths"], strict=True):
        rows = slice(first, first + queries)
        scores = reference.indexer_scores(query[rows], key[origin : origin + keys], gate[rows])
        hidden = torch.arange(keys) > torch.arange(keys - queries, keys)[:, None]
        expected[rows, :keys] = scores.masked_fill(hidden, -torch.inf)
        first, origin = first + queries, origin + keys
    return expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "width", "sub_block"), [(3, 32, 8), (1, 32, 4), (16, 64, 32)])
def test_scores_and_maxima_equal_the_reference(dtype: torch.dtype, heads: int, width: int, sub_block: int) -> None:
    inputs = whole_numbers(dtype, heads, width)
    scores, maxima = index_logits(**inputs, sub_block=sub_block)
    assert scores.dtype == maxima.dtype == torch.float32
    assert scores.shape == (49, 96)
    expected = expected_scores(inputs, 96)
    assert torch.equal(scores, expected)
    assert torch.equal(maxima, expected.unflatten(1, (-1, sub_block)).amax(2))


def test_sixteen_bits_take_sixteen_channels() -> None:
    inputs = whole_numbers(torch.float16, heads=2, width=16, queries=(20,), keys=(37,))
    assert torch.equal(index_logits(**inputs)[0], expected_scores(inputs, 64))


def test_random_float32_scores_are_near_the_reference() -> None:
    inputs = whole_numbers(torch.float32)
    for name in ("query", "key", "gate"):
        inputs[name] = torch.randn(inputs[name].shape)
    scores, _ = index_logits(**inputs)
    torch.testing.assert_close(scores, expected_scores(inputs, 96), rtol=1e-5, atol=1e-5)


def test_tiles_of_other_sizes_give_the_same() -> None:
    inputs = whole_numbers(torch.float32)
    scores, maxima = index_logits(**inputs)
    for launch in (Launch(16, 4, 1, queries=32), Launch(64, 4, 1, queries=4)):
        other, peaks = index_logits(**inputs, launch=launch)
        columns = min(scores.shape[1], other.shape[1])
        assert torch.equal(other[:, :columns], scores[:, :columns])
        assert torch.equal(peaks[:, : columns // 8], maxima[:, : columns // 8])
        assert (other[:, columns:] == -torch.inf).all()


def test_rows_and_skipped_queries_leave_the_rest_of_the_output_alone() -> None:
    inputs = whole_numbers(torch.float32)
    rows, width = range(5, 40), 96
    out = torch.full((35, width), POISON), torch.full((35, width // 8), POISON)
    scores, maxima = index_logits(**inputs, rows=rows, skip=12, out=out)
    assert scores is out[0]
    expected = expected_scores(inputs, width)[5:40]
    scored = (expected > -torch.inf).sum(1) > 12
    assert 0 < scored.sum() < 35
    assert torch.equal(scores[scored], expected[scored])
    assert torch.equal(maxima[scored], expected[scored].unflatten(1, (-1, 8)).amax(2))
    assert (scores[~scored] == POISON).all()
    assert (maxima[~scored] == POISON).all()


def test_without_filling_tiles_that_nobody_sees_are_not_written() -> None:
    inputs = whole_numbers(torch.float32, queries=(40,), keys=(40,))
    out = torch.full((40, 64), POISON), torch.full((40, 8), POISON)
    scores, _ = index_logits(**inputs, out=out, fill=False)
    expected = expected_scores(inputs, 64)
    visible = expected > -torch.inf
    assert torch.equal(scores[visible], expected[visible])
    assert (scores[:16, 32:] == POISON).all()
    assert not (scores[32:] == POISON).any()


def test_nan_scores_become_minus_infinity() -> None:
    inputs = whole_numbers(torch.float32, queries=(6,), keys=(6,))
    inputs["key"][2, 3] = torch.nan
    scores, maxima = index_logits(**inputs)
    assert (scores[:, 2] == -torch.inf).all()
    assert not scores.isnan().any()
    assert not maxima.isnan().any()


def test_nothing_to_score() -> None:
    inputs = whole_numbers(torch.float32, queries=(0,), keys=(5,))
    assert index_logits(**inputs)[0].shape == (0, 32)


def bad(**changes):
    def change(inputs: dict) -> dict:
        return {**inputs, **{name: make(inputs) for name, make in changes.items()}}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bad(query=lambda i: i["query"][..., :8]), r"query is \[49, 3, 8\] and key \[103, 32\]"),
        (bad(query=lambda i: i["query"][..., :8], key=lambda i: i["key"][:, :8]), "indexer_dim=8: the kernels take"),
        (bad(query=lambda i: i["query"].double()), "query is torch.float64 and key torch.float32: one dtype of"),
        (bad(query=lambda i: i["query"].bfloat16(), key=lambda i: i["key"].bfloat16()), "bfloat16 on the processor"),
        (bad(gate=lambda i: i["gate"][:, :2]), r"gate is \[49, 2\]: \[49, 3\] is needed"),
        (bad(query_scale=lambda i: i["gate"]), "query_scale: float8_e4m3fn needs scales, other dtypes take none"),
        (bad(key=lambda i: i["key"].t().contiguous().t()), "key is not contiguous"),
        (bad(key_lengths=lambda i: (1, 9, 70, 3, 19)), "sequence 4 has 20 queries and 19 keys"),
        (bad(sub_block=lambda i: 6), "sub_block=6: a power of two"),
        (
            bad(out=lambda i: (torch.zeros(49, 40), torch.zeros(49, 5))),
            "out has 40 columns: a multiple of the tile's 32",
        ),
        (bad(out=lambda i: (torch.zeros(9, 96), torch.zeros(9, 12))), r"contiguous float32 \[49, 96\] is needed"),
        (
            bad(out=lambda i: (torch.zeros(49, 64), torch.zeros(49, 8))),
            "out has 64 columns, a query of rows sees 70 keys",
        ),
    ],
)
def test_bad_input_is_named(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index_logits(**change(whole_numbers(torch.float32)))


def test_eight_bits_need_both_scales_in_shape() -> None:
    inputs = whole_numbers(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="key_scale: float8_e4m3fn needs scales"):
        index_logits(**{**inputs, "key_scale": None})
    narrow = {**inputs, "query": inputs["query"][..., :16].contiguous(), "key": inputs["key"][:, :16].contiguous()}
    with pytest.raises(ValueError, match="indexer_dim=16: float8_e4m3fn needs at least 32"):
        index_logits(**narrow)
    with pytest.raises(ValueError, match=r"key_scale is \[5\] torch.float32: \[103\]"):
        index_logits(**{**inputs, "key_scale": torch.ones(5)})


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "width"), [(16, 64), (4, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_device_scores_equal_the_reference(heads: int, width: int, dtype: torch.dtype) -> None:
    queries, keys = (1, 300, 513), (1, 700, 513)
    inputs = whole_numbers(dtype, heads, width, queries, keys)
    moved = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    scores, maxima = index_logits(**moved)
    expected = expected_scores(inputs, scores.shape[1])
    torch.testing.assert_close(scores.cpu(), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(maxima, scores.unflatten(1, (-1, 8)).amax(2))
