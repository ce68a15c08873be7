"""Log-sum-exp of the indexer's scores against float64."""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.indexer_lse import index_lse
from keyekit_kernels.dsa.launch import Launch
from keyekit_kernels.dsa.quantization import dequantize, quantize

pytestmark = pytest.mark.interpreter

QUERIES, KEYS = (1, 7, 21, 0, 20), (1, 9, 70, 3, 20)


def pack(dtype: torch.dtype, heads: int = 3, width: int = 32, queries=QUERIES, keys=KEYS) -> tuple[dict, torch.Tensor]:
    """Arguments, and the log-sum-exp of each query computed in float64 from what they hold."""
    query, key = torch.randn(sum(queries), heads, width), torch.randn(sum(keys), width)
    gate, scales = torch.randn(sum(queries), heads), {}
    if dtype == torch.float8_e4m3fn:
        (query, scales["query_scale"]), (key, scales["key_scale"]) = quantize(query), quantize(key)
        wide = dequantize(query, scales["query_scale"]).double(), dequantize(key, scales["key_scale"]).double()
    else:
        query, key = query.to(dtype), key.to(dtype)
        wide = query.double(), key.double()
    sums, first, origin = [], 0, 0
    for length, stored in zip(queries, keys, strict=True):
        rows = slice(first, first + length)
        scores = reference.indexer_scores(wide[0][rows], wide[1][origin : origin + stored], gate[rows].double())
        hidden = torch.arange(stored) > torch.arange(stored - length, stored)[:, None]
        sums.append(scores.masked_fill(hidden, -torch.inf).logsumexp(1))
        first, origin = first + length, origin + stored
    return {
        "query": query,
        "key": key,
        "gate": gate,
        "query_lengths": queries,
        "key_lengths": keys,
        **scales,
    }, torch.cat(sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("launch", [None, Launch(16, 4, 1, queries=32)])
def test_log_sum_exp_equals_float64(dtype: torch.dtype, launch: Launch | None) -> None:
    arguments, expected = pack(dtype)
    torch.testing.assert_close(index_lse(**arguments, launch=launch).double(), expected, rtol=1e-5, atol=1e-5)


def test_one_program_per_tile_gives_what_many_give(monkeypatch) -> None:
    arguments, expected = pack(torch.float32)
    monkeypatch.setattr("keyekit_kernels.dsa.indexer_lse._PROGRAMS", 1)
    torch.testing.assert_close(index_lse(**arguments).double(), expected, rtol=1e-5, atol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    arguments, _ = pack(torch.float32)
    arguments["gate"] = arguments["gate"] * 1e6
    result = index_lse(**arguments)
    assert result.isfinite().all()
    assert result.abs().max() > 1e5


def test_no_queries_and_wrong_lengths() -> None:
    arguments, _ = pack(torch.float32)
    none = {**arguments, "query": arguments["query"][:0], "gate": arguments["gate"][:0], "query_lengths": (0,) * 5}
    assert index_lse(**none).shape == (0,)
    with pytest.raises(ValueError, match="query_lengths add up to 49, query has 48 rows"):
        index_lse(**{**arguments, "query": arguments["query"][:48], "gate": arguments["gate"][:48]})


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "width"), [(16, 64), (4, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_device_log_sum_exp_equals_float64(heads: int, width: int, dtype: torch.dtype) -> None:
    arguments, expected = pack(dtype, heads, width, (1, 300, 513), (1, 700, 513))
    moved = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    torch.testing.assert_close(index_lse(**moved).cpu().double(), expected, rtol=1e-4, atol=1e-3)
