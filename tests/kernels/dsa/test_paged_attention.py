"""Attention over selected positions of paged caches against the unpaged reference."""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.paged_attention import paged_attention

pytestmark = pytest.mark.interpreter

LENGTHS = (1, 150, 0, 192, 128)
PAGES = 12


def paged(
    dtype: torch.dtype = torch.float32, heads: int = 6, groups: int = 2, width: int = 16, selected: int = 140
) -> dict:
    """Pages in any order; each sequence selects as many of its positions as it has, up to ``selected``."""
    batch = len(LENGTHS)
    table = torch.full((batch, 3), 2**30, dtype=torch.int32)  # past the length: the address of no page
    indices = torch.full((batch, selected), -1, dtype=torch.int32)
    pages = iter(torch.randperm(PAGES).tolist())
    for sequence, length in enumerate(LENGTHS):
        for page in range(-(-length // 64)):
            table[sequence, page] = next(pages)
        count = min(length, selected)
        indices[sequence, :count] = torch.randperm(length)[:count].sort().values
    return {
        "query": torch.randn(batch, heads, width).to(dtype),
        "key": torch.randn(PAGES * 64, groups, width).to(dtype),
        "value": torch.randn(PAGES * 64, groups, width).to(dtype),
        "indices": indices,
        "page_table": table,
        "lengths": torch.tensor(LENGTHS, dtype=torch.int32),
    }


def expected_of(cache: dict, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference on positions translated to slots."""
    position = cache["indices"].clamp(min=0).long()
    slots = cache["page_table"].long().gather(1, position // 64) * 64 + position % 64
    slots = torch.where(cache["indices"] < 0, -1, slots)
    return reference.attention_over_selection(cache["query"], cache["key"], cache["value"], slots, scale)


@pytest.mark.parametrize("splits", [None, 1, 2, 100])
def test_any_number_of_splits_equals_the_reference(splits: int | None) -> None:
    cache = paged()
    output, lse = paged_attention(**cache, scale=0.25, splits=splits)
    expected, sums = expected_of(cache, 0.25)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse, sums, rtol=1e-5, atol=1e-5)
    assert (output[2] == 0).all()
    assert (lse[2] == -1e30).all()


@pytest.mark.parametrize(
    ("heads", "groups", "width"), [(1, 1, 32), (5, 5, 16), (4, 2, 16), (6, 2, 16), (8, 2, 128), (34, 2, 64)]
)
def test_any_group_size_in_half_precision(heads: int, groups: int, width: int) -> None:
    cache = paged(torch.float16, heads, groups, width, selected=20)
    output, lse = paged_attention(**cache, scale=width**-0.5)
    expected, sums = expected_of(cache, width**-0.5)
    assert output.dtype == torch.float16
    torch.testing.assert_close(output, expected, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(lse, sums, rtol=1e-4, atol=1e-4)


def test_large_logits_do_not_overflow() -> None:
    cache = paged()
    cache["query"] *= 1e3
    output, lse = paged_attention(**cache, scale=1.0, splits=1)
    expected, sums = expected_of(cache, 1.0)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse, sums, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("query", lambda x: x[:, :5].contiguous(), "query has 5 heads, which 2 groups of keys do not divide"),
        ("key", torch.Tensor.half, "query, key and value are torch.float32, torch.float16"),
        ("value", lambda x: x[..., :8], "query is .* are needed"),
        ("indices", torch.Tensor.long, r"indices is \[5, 140\] torch.int64: int32 \[5, N\] is needed"),
        ("indices", lambda x: x.t().contiguous().t(), "indices is not contiguous"),
        ("lengths", lambda x: x[:2], r"lengths is \[2\] torch.int32: contiguous int32 \[5\]"),
        ("page_table", torch.Tensor.long, "page_table is .* torch.int64: contiguous int32"),
    ],
)
def test_bad_input_is_named(name: str, change, message: str) -> None:
    cache = paged()
    cache[name] = change(cache[name])
    with pytest.raises(ValueError, match=message):
        paged_attention(**cache, scale=0.25)


def test_widths_and_whole_pages() -> None:
    cache = paged()
    narrow = {name: cache[name][..., :8].contiguous() for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match="query has width 8: the kernels take"):
        paged_attention(**{**cache, **narrow}, scale=0.25)
    part = {name: cache[name][:100] for name in ("key", "value")}
    with pytest.raises(ValueError, match="key has 100 slots: a multiple of the page's 64"):
        paged_attention(**{**cache, **part}, scale=0.25)


@pytest.mark.gpu
def test_device_attention_equals_the_reference() -> None:
    cache = paged(torch.bfloat16, heads=32, groups=4, width=128)
    expected, sums = expected_of(cache, 128**-0.5)
    output, lse = paged_attention(**{name: x.cuda() for name, x in cache.items()}, scale=128**-0.5)
    torch.testing.assert_close(output.cpu().float(), expected.float(), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(lse.cpu(), sums, rtol=1e-3, atol=1e-3)
