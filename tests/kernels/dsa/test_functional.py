"""The packed door: sequences never mix, selection is causal, implementations are chosen by name."""

import pytest
import torch
from torch.nn import functional

from keyekit_kernels import dsa
from keyekit_kernels.dsa import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUNCTIONS = ("IndexerTopK", "SparseGQA", "IndexerKL")


def test_selection_is_causal_and_stays_inside_each_sequence() -> None:
    torch.manual_seed(0)
    lengths = (5, 1, 9)
    query, key, gate = torch.randn(15, 2, 8), torch.randn(15, 8), torch.randn(15, 2)
    chosen = dsa.index_topk(query, key, gate, lengths, lengths, topk=3)
    start = 0
    for length in lengths:
        alone = dsa.index_topk(*(x[start : start + length] for x in (query, key, gate)), (length,), (length,), topk=3)
        for t in range(length):
            row = chosen[start + t]
            used = row[row >= 0] - start
            assert used.tolist() == alone[t][alone[t] >= 0].tolist()
            assert len(used) == min(3, t + 1)
            assert used.max() <= t
            assert used.min() >= 0
        start += length


def test_decoding_selects_what_the_whole_sequence_selected() -> None:
    torch.manual_seed(0)
    query, key, gate = torch.randn(9, 2, 8), torch.randn(9, 8), torch.randn(9, 2)
    whole = dsa.index_topk(query, key, gate, (9,), (9,), topk=4)
    last = dsa.index_topk(query[8:], key, gate[8:], (1,), (9,), topk=4)
    assert last[0].tolist() == whole[8].tolist()


def test_indexer_kl_trains_the_indexer_alone() -> None:
    torch.manual_seed(0)
    iq, ik, gate = (torch.randn(s, requires_grad=True) for s in ((6, 2, 8), (6, 8), (6, 2)))
    query, key = torch.randn(6, 4, 16, requires_grad=True), torch.randn(6, 2, 16, requires_grad=True)
    indices = dsa.index_topk(iq, ik, gate, (6,), (6,), topk=4)
    divergence = dsa.indexer_kl(iq, ik, gate, query, key, indices, 0.25)
    assert (divergence >= -1e-6).all()
    assert divergence[0].abs() < 1e-6
    divergence.sum().backward()
    assert query.grad is None
    assert key.grad is None
    assert iq.grad.abs().sum() > 0
    assert ik.grad.abs().sum() > 0
    assert gate.grad.abs().sum() > 0
    target = reference.attention_target(query, key, indices, 0.25)
    torch.testing.assert_close(target.sum(1), torch.ones(6))


def test_autocast_does_not_round_the_selection() -> None:
    query, key, gate = torch.randn(40, 4, 16), torch.randn(40, 16), torch.randn(40, 4)
    plain = dsa.index_topk(query, key, gate, [40], [40], 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = dsa.index_topk(query, key, gate, [40], [40], 7)
    assert torch.equal(cast, plain)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_with_enough_keys_it_is_dense_attention_in_outputs_and_gradients(
    implementation: str, deterministic: bool
) -> None:
    lengths = (5, 0, 1, 12)
    shapes = (18, 4, 16), (18, 2, 16), (18, 2, 16)
    inputs = [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]
    index = [torch.randn(shape, device=DEVICE) for shape in ((18, 2, 16), (18, 16), (18, 2))]
    chosen = dsa.index_topk(*index, lengths, lengths, 12, implementation)
    output, _ = dsa.sparse_attention(*inputs, chosen, 0.25, implementation, lengths, lengths, deterministic)
    pieces = zip(*(tensor.split(lengths) for tensor in inputs), strict=True)
    expected = torch.cat(
        [
            functional.scaled_dot_product_attention(
                *(tensor.transpose(0, 1)[None] for tensor in piece), is_causal=True, scale=0.25, enable_gqa=True
            )[0].transpose(0, 1)
            for piece in pieces
            if len(piece[0])
        ]
    )
    weight = torch.randn_like(expected)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(output, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_three_functions_stand_at_the_door() -> None:
    from keyekit_kernels.dsa import functional as door

    assert all(issubclass(getattr(door, name), torch.autograd.Function) for name in FUNCTIONS)
    with pytest.raises(AttributeError, match="no attribute 'SparseMLA'"):
        door.SparseMLA  # noqa: B018
