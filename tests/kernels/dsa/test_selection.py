"""Scoring and selecting by chunks against the packed reference: indices are equal."""

import pytest
import torch

from keyekit_kernels.dsa import functional
from keyekit_kernels.dsa.quantization import dequantize
from keyekit_kernels.dsa.selection import index_topk

pytestmark = pytest.mark.interpreter


def inputs(kind: str, queries=(1, 7, 14, 0, 10), keys=(1, 9, 40, 3, 10), heads: int = 3, width: int = 16):
    make = torch.randn if kind == "random" else lambda *shape: torch.randint(-2, 3, shape).float()
    return make(sum(queries), heads, width), make(sum(keys), width), make(sum(queries), heads), queries, keys


@pytest.mark.parametrize("kind", ["random", "tied"])
@pytest.mark.parametrize(("topk", "workspace"), [(8, 1), (8, 3000), (5, 2**29), (64, 2**29)])
def test_scoring_and_selecting_by_chunks_equals_the_reference(kind: str, topk: int, workspace: int) -> None:
    arguments = inputs(kind)
    chosen = index_topk(*arguments, topk, workspace=workspace)
    assert torch.equal(chosen, functional.index_topk(*arguments, topk, implementation="torch"))


def test_eight_bit_selection_equals_the_reference_on_dequantised_inputs() -> None:
    query, key, gate, queries, keys = inputs("tied", width=32)
    scales = 2.0 ** torch.randint(-2, 3, gate.shape), 2.0 ** torch.randint(-2, 3, key.shape[:1])
    small = torch.float8_e4m3fn
    chosen = index_topk(
        query.to(small), key.to(small), gate, queries, keys, 9, query_scale=scales[0], key_scale=scales[1]
    )
    expected = functional.index_topk(
        dequantize(query, scales[0]), dequantize(key, scales[1]), gate, queries, keys, 9, implementation="torch"
    )
    assert torch.equal(chosen, expected)


def test_queries_that_take_all_keys_are_not_scored(monkeypatch) -> None:
    def refuse(*_, **__) -> None:
        raise AssertionError("scored")

    arguments = inputs("random", (4, 3), (5, 6))
    expected = functional.index_topk(*arguments, 6, implementation="torch")
    monkeypatch.setattr("keyekit_kernels.dsa.indexer.index_logits_kernel", refuse)
    assert torch.equal(index_topk(*arguments, 6), expected)


def test_nothing_to_select() -> None:
    assert index_topk(*inputs("random", (0,), (0,)), 4).shape == (0, 0)
    assert index_topk(*inputs("random", (0,), (5,)), 4).shape == (0, 4)


def test_no_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="topk=0: at least one"):
        index_topk(*inputs("random"), 0)


@pytest.mark.gpu
@pytest.mark.parametrize(("queries", "keys"), [((40, 3), (262144, 50000))])
def test_device_selection_over_long_contexts(queries, keys) -> None:
    query, key, gate = (x.cuda() for x in inputs("tied", queries, keys, 4, 64)[:3])
    chosen = index_topk(query.bfloat16(), key.bfloat16(), gate, queries, keys, 2048)
    assert torch.equal(chosen, functional.index_topk(query, key, gate, queries, keys, 2048, implementation="torch"))


@pytest.mark.gpu
def test_device_selection_in_bfloat16_equals_that_of_its_own_scores() -> None:
    lengths = (3000, 1, 5001)
    query, key, gate, *_ = (x.cuda() for x in inputs("tied", lengths, lengths, 16, 64)[:3])
    chosen = index_topk(query.bfloat16(), key.bfloat16(), gate, lengths, lengths, 512, workspace=2**24)
    assert torch.equal(chosen, functional.index_topk(query, key, gate, lengths, lengths, 512, implementation="torch"))
