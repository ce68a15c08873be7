"""Selection through the door: hard inputs, the same bits every time, and checkpointing that keeps it."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from keyekit_kernels import dsa
from keyekit_kernels.dsa import indexer_topk, reference
from keyekit_kernels.dsa.functional import IndexerTopK

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BOTH = pytest.mark.parametrize("implementation", ["torch", "triton"])
LENGTHS = (5, 0, 1, 12)


def indexer(lengths=LENGTHS, heads: int = 3, width: int = 16) -> list[torch.Tensor]:
    total = sum(lengths)
    return [torch.randn(shape, device=DEVICE) for shape in ((total, heads, width), (total, width), (total, heads))]


def causal(lengths) -> list[list[int]]:
    rows, start = [], 0
    for length in lengths:
        rows += [list(range(start, start + t + 1)) for t in range(length)]
        start += length
    return rows


@BOTH
@pytest.mark.parametrize("topk", [12, 50])
def test_more_keys_than_there_are_means_all_of_them(topk: int, implementation: str) -> None:
    chosen = dsa.index_topk(*indexer(), LENGTHS, LENGTHS, topk, implementation)
    assert chosen.shape == (18, 12)
    assert [[key for key in row if key >= 0] for row in chosen.tolist()] == causal(LENGTHS)


@BOTH
def test_strides_do_not_matter(implementation: str) -> None:
    query, key, gate = indexer()
    strided = query.permute(2, 1, 0).contiguous().permute(2, 1, 0), key.t().contiguous().t(), gate.t().contiguous().t()
    assert not any(tensor.is_contiguous() for tensor in strided)
    one, other = (dsa.index_topk(*made, LENGTHS, LENGTHS, 3, implementation) for made in ((query, key, gate), strided))
    assert torch.equal(one, other)


@BOTH
@pytest.mark.parametrize("lengths", [(0,), (), (0, 0, 3), (1,), (2, 0)])
def test_sequences_without_tokens(lengths: tuple[int, ...], implementation: str) -> None:
    chosen = dsa.index_topk(*indexer(lengths), lengths, lengths, 2, implementation)
    assert chosen.shape == (sum(lengths), min(2, max(lengths, default=0)))
    assert [[key for key in row if key >= 0] for row in chosen.tolist()][:2] == causal(lengths)[:2]


@BOTH
def test_nan_is_selected_after_every_number_and_never_instead(implementation: str) -> None:
    query, key, gate = indexer((40,))
    key[3:20, 2] = torch.nan
    chosen = dsa.index_topk(query, key, gate, (40,), (40,), 10, implementation)
    for position, row in enumerate(chosen.tolist()):
        finite = [key for key in range(position + 1) if not 3 <= key < 20]
        used = {key for key in row if key >= 0}
        assert len(used) == min(10, position + 1)
        assert len(used & set(finite)) == min(10, len(finite))
    query[:] = torch.nan  # nothing but NaN: the lowest indices
    chosen = dsa.index_topk(query, key, gate, (40,), (40,), 10, implementation)
    assert chosen[-1].tolist() == list(range(10))


@BOTH
def test_the_same_bits_every_time(implementation: str) -> None:
    made = indexer((60,))
    made[0][:] = made[0].round()  # ties
    first = dsa.index_topk(*made, (60,), (60,), 7, implementation)
    assert all(torch.equal(first, dsa.index_topk(*made, (60,), (60,), 7, implementation)) for _ in range(3))


@BOTH
def test_it_is_an_autograd_function_without_a_gradient(implementation: str) -> None:
    made = [tensor.requires_grad_() for tensor in indexer()]
    chosen = IndexerTopK.apply(*made, LENGTHS, LENGTHS, 3, implementation)
    assert not chosen.requires_grad
    assert chosen.dtype == torch.int32
    (chosen.sum() + made[0].sum()).backward()
    assert made[1].grad is None


@BOTH
@pytest.mark.parametrize("keep", [False, True])
def test_checkpointing_selects_once_if_told_to_and_alike_if_not(keep: bool, implementation: str, monkeypatch) -> None:
    found: list[torch.Tensor] = []
    select = indexer_topk._select

    def counted(*arguments):
        found.append(select(*arguments))
        return found[-1]

    if implementation == "torch":
        monkeypatch.setattr(indexer_topk, "_select", counted)
    else:
        from keyekit_kernels.dsa import selection

        select = selection.index_topk
        monkeypatch.setattr(selection, "index_topk", counted)
    index, lengths = [tensor.requires_grad_() for tensor in indexer()], LENGTHS
    query, key = (torch.randn(18, heads, 16, device=DEVICE, requires_grad=True) for heads in (2, 1))

    def layer(query, key, *index):
        chosen = dsa.index_topk(*index, lengths, lengths, 3, implementation)
        output, lse = dsa.sparse_attention(query, key, key, chosen, 0.25, implementation, lengths, lengths)
        divergence = dsa.indexer_kl(*index, query, key, chosen, 0.25, implementation, lse)
        return output.square().sum() + divergence.sum()

    inputs = [query, key, *index]
    plain = torch.autograd.grad(layer(*inputs), inputs)
    found.clear()
    options = {"context_fn": dsa.keep_selections} if keep else {}
    again = torch.autograd.grad(checkpoint(layer, *inputs, use_reentrant=False, **options), inputs)
    assert len(found) == (1 if keep else 2)
    assert all(torch.equal(found[0], other) for other in found)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


def test_the_operator_declares_what_it_does() -> None:
    query, key, gate = indexer()
    arguments = (query, key, gate, list(LENGTHS), list(LENGTHS), 3, "torch")
    torch.library.opcheck(torch.ops.keyekit_dsa.index_topk.default, arguments)


@pytest.mark.parametrize("products", [1, 60, 2**24])
def test_sequences_that_decode_together_select_as_each_alone(products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer_topk, "_PRODUCTS", products)
    key_lengths = (5, 1, 12, 7)
    query, _, gate = indexer((1,) * 4)
    key = torch.randn(sum(key_lengths), 16, device=DEVICE)
    key[2] = torch.nan
    together = dsa.index_topk(query, key, gate, (1,) * 4, key_lengths, 6, "torch")
    assert together.shape == (4, 6)
    start = 0
    for place, length in enumerate(key_lengths):
        rows = slice(place, place + 1)
        scores = reference.indexer_scores(query[rows], key[start : start + length], gate[rows])
        alone = reference.select_topk(scores, torch.tensor([length], device=DEVICE), 6)[0]
        assert [chosen - start for chosen in together[place].tolist() if chosen >= 0] == [
            k for k in alone.tolist() if k >= 0
        ]
        start += length
