"""The DSA layer: what it selects, what it trains, what it reports."""

from itertools import pairwise

import pytest
import torch

from keyekit.batch import Segments
from keyekit.models.cache import SequenceCache
from keyekit.nn.attention.base import LayerContext
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.rope.rotary import MultimodalRope, Rotary
from keyekit.nn.spec import LayerSpec
from keyekit_kernels import dsa

ROPE = MultimodalRope(head_dim=32, section=(4, 6, 6))
SPEC = LayerSpec(layer=0, dim=48, num_heads=4, num_groups=2, head_dim=32, hidden_dim=64, norm_eps=1e-6, rope=ROPE)


def context(lengths: list[int], **extra) -> LayerContext:
    positions = torch.cat([torch.arange(n) for n in lengths]).expand(3, -1)
    fields = {"num_tokens": sum(lengths)} | extra
    return LayerContext(segments=Segments.of(lengths), rotary=Rotary(ROPE, positions), **fields)


def layer(**arguments) -> DSA:
    torch.manual_seed(0)
    return DSA(SPEC, **({"topk": 4, "num_indexer_heads": 2, "indexer_head_dim": 16} | arguments))


def test_indexer_weights_have_the_released_shapes() -> None:
    spec = LayerSpec(
        layer=0,
        dim=2048,
        num_heads=32,
        num_groups=4,
        head_dim=128,
        hidden_dim=6144,
        norm_eps=1e-6,
        rope=MultimodalRope(theta=1e7),
    )
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in DSA(spec).named_parameters() if "sa_indexer" in name}
    assert shapes == {  # Keye-VL-2.0 sheet 5
        "sa_indexer.q_proj.weight": (1040, 2048),
        "sa_indexer.k_proj.weight": (64, 2048),
        "sa_indexer.q_norm.weight": (64,),
        "sa_indexer.k_norm.weight": (64,),
        "sa_indexer.k_norm.bias": (64,),
    }


def test_each_loss_trains_its_own_side() -> None:
    attention = layer()
    hidden = torch.randn(12, 48, requires_grad=True)
    output = attention(hidden, context([7, 5]))
    output.losses["indexer_kl"].backward(retain_graph=True)
    assert hidden.grad is None, "the indexer's loss must not reach the model"
    trained = {name for name, p in attention.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in attention.named_parameters() if "sa_indexer" in name}
    attention.zero_grad()
    output.hidden.sum().backward()
    assert all(p.grad is None or not p.grad.any() for name, p in attention.named_parameters() if "sa_indexer" in name)
    assert hidden.grad.abs().sum() > 0


def test_the_indexer_learns_to_follow_the_attention() -> None:
    attention = layer(topk=6)
    torch.manual_seed(1)
    with torch.no_grad():
        attention.projection.q_proj.weight.mul_(8)  # a peaked teacher
    hidden = torch.randn(60, 48)
    optimizer = torch.optim.Adam(attention.sa_indexer.parameters(), lr=1e-2)
    divergences = []
    for _ in range(60):
        loss = attention(hidden, context([30, 30])).losses["indexer_kl"]
        divergences.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(divergences[-5:]) < 0.6 * sum(divergences[:5])


def test_replayed_selection_is_used_and_returned() -> None:
    attention = layer()
    hidden = torch.randn(9, 48)
    free = attention(hidden, context([9]))
    other = torch.where(free.selection >= 0, torch.zeros_like(free.selection), free.selection)
    replayed = attention(hidden, context([9], selection=other))
    assert replayed.selection is other
    assert not torch.allclose(free.hidden, replayed.hidden)
    torch.testing.assert_close(attention(hidden, context([9], selection=free.selection)).hidden, free.hidden)


def test_share_counts_the_samples_and_not_the_tail() -> None:
    output = layer(topk=2)(torch.randn(10, 48), context([4, 6], num_tokens=4))
    assert output.meters["selected_share"].item() == pytest.approx((1 + 2 + 2 + 2) / 10)


def test_no_loss_without_gradients_or_with_weight_zero() -> None:
    assert layer(kl_weight=0.0)(torch.randn(4, 48), context([4])).losses == {}
    with torch.no_grad():
        assert layer()(torch.randn(4, 48), context([4])).losses == {}


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="topk=0"):
        layer(topk=0)
    with pytest.raises(ValueError, match="does not scale"):
        layer(indexer_head_dim=10)


@pytest.mark.parametrize("lengths", [[7, 1, 5], [9], [3, 0, 2]])
@torch.no_grad()
def test_short_sequences_are_not_scored_and_give_the_same(lengths: list[int], monkeypatch) -> None:
    """Keye-VL-2.0 sheet 4.2. With one more sequence that is longer than topk the others take the slow path."""
    attention, hidden = layer(topk=9).double(), torch.randn(sum(lengths) + 10, 48, dtype=torch.float64)
    slow = attention(hidden, context([*lengths, 10]))
    monkeypatch.setattr("keyekit_kernels.dsa.index_topk", None)
    count = sum(lengths)
    fast = attention(hidden[:count], context(lengths))
    torch.testing.assert_close(fast.hidden, slow.hidden[:count])
    width = max(lengths)
    assert torch.equal(fast.selection, slow.selection[:count, :width])
    assert (slow.selection[:count, width:] == -1).all()
    assert fast.meters["selected_share"] == 1


def test_training_without_divergence_is_bit_identical_on_the_short_path() -> None:
    hidden, results = torch.randn(12, 48), []
    for replayed in (False, True):
        attention, own = layer(topk=9, kl_weight=0.0), hidden.clone().requires_grad_()
        selection = attention(own, context([7, 5])).selection if replayed else None
        output = attention(own, context([7, 5], selection=selection))
        output.hidden.square().sum().backward()
        results.append((output.hidden, own.grad, attention.o_proj.weight.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@torch.no_grad()
def test_a_sequence_that_outgrows_topk_finds_the_index_keys_of_its_short_days() -> None:
    attention, hidden = layer(topk=6), torch.randn(11, 48)
    whole = attention(hidden, context([11]))
    positions, cache, pieces = torch.arange(11).expand(3, -1), SequenceCache(1, [11]), []
    for start, stop in pairwise([0, 4, 5, 6, 7, 8, 9, 10, 11]):
        piece = LayerContext(
            segments=cache.segments_for([stop - start], "cpu"),
            rotary=Rotary(ROPE, positions[:, start:stop]),
            num_tokens=stop - start,
            cache=cache.layer(0),
        )
        pieces.append(attention(hidden[start:stop], piece).hidden)
        cache.advance([stop - start])
    torch.testing.assert_close(torch.cat(pieces), whole.hidden, rtol=1e-4, atol=1e-5)


def test_eight_bit_reaches_the_indexer() -> None:
    assert layer(eight_bit=True).sa_indexer.eight_bit
    assert not layer().sa_indexer.eight_bit


def warm(**arguments) -> DSA:
    return layer(mode="dense_warmup", **arguments)


@pytest.mark.parametrize("lengths", [[7, 1, 5], [9], [3, 0, 2]])
def test_warm_up_attends_like_dense_attention(lengths: list[int]) -> None:
    attention, dense = warm(topk=2), Dense(SPEC)
    dense.load_state_dict({n: t for n, t in attention.state_dict().items() if "sa_indexer" not in n})
    hidden, results = torch.randn(sum(lengths), 48), []
    for scheme in (attention, dense):
        own = hidden.clone().requires_grad_()
        output = scheme(own, context(lengths))
        output.hidden.square().sum().backward()
        results.append((output.hidden, own.grad, *(p.grad for n, p in scheme.named_parameters() if "sa_" not in n)))
        assert output.selection is None
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_warm_up_teaches_the_indexer_alone_and_from_all_keys() -> None:
    attention = warm(topk=2, kl_weight=0.5).double()
    hidden = torch.randn(15, 48, dtype=torch.float64, requires_grad=True)
    output = attention(hidden, context([7, 5, 3], num_tokens=12))
    output.losses["indexer_kl"].backward()
    assert hidden.grad is None, "the indexer's loss must not reach the model"
    trained = {name for name, p in attention.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in attention.named_parameters() if "sa_indexer" in name}
    complete = layer(topk=15, kl_weight=0.5).double()  # k >= L: the selection is all that is visible
    complete.load_state_dict(attention.state_dict())
    expected = complete(hidden, context([7, 5, 3], num_tokens=12))
    torch.testing.assert_close(output.hidden, expected.hidden)
    torch.testing.assert_close(output.losses["indexer_kl"], expected.losses["indexer_kl"])
    assert output.meters["indexer_kl"].item() == pytest.approx(2 * output.losses["indexer_kl"].item())
    expected.losses["indexer_kl"].backward()
    for mine, theirs in zip(attention.sa_indexer.parameters(), complete.sa_indexer.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12)


def test_warm_up_leaves_the_tail_out_wherever_it_begins() -> None:
    attention, hidden = warm(topk=2).double(), torch.randn(12, 48, dtype=torch.float64)
    inside = attention(hidden, context([7, 5], num_tokens=9)).losses["indexer_kl"]
    alone = attention(hidden[:9], context([7, 2])).losses["indexer_kl"]
    torch.testing.assert_close(inside, alone)
    assert attention(hidden, context([7, 5], num_tokens=0)).losses["indexer_kl"] == 0


def test_warm_up_teaches_behind_an_empty_sequence() -> None:
    attention, hidden = warm(topk=2).double(), torch.randn(9, 48, dtype=torch.float64)
    expected = attention(hidden, context([4, 5])).losses["indexer_kl"]
    torch.testing.assert_close(attention(hidden, context([4, 0, 5])).losses["indexer_kl"], expected)


@torch.no_grad()
def test_warm_up_decodes_densely_and_replays_selections() -> None:
    attention, hidden = warm(topk=3), torch.randn(11, 48)
    whole = attention(hidden, context([11]))
    assert whole.losses == {}
    positions, cache, pieces = torch.arange(11).expand(3, -1), SequenceCache(1, [11]), []
    for start, stop in pairwise([0, 4, 5, 8, 11]):
        piece = LayerContext(
            segments=cache.segments_for([stop - start], "cpu"),
            rotary=Rotary(ROPE, positions[:, start:stop]),
            num_tokens=stop - start,
            cache=cache.layer(0),
        )
        pieces.append(attention(hidden[start:stop], piece).hidden)
        cache.advance([stop - start])
    torch.testing.assert_close(torch.cat(pieces), whole.hidden, rtol=1e-4, atol=1e-5)
    selection = layer(topk=3)(hidden, context([11])).selection
    replayed = attention(hidden, context([11], selection=selection))
    torch.testing.assert_close(replayed.hidden, layer(topk=3)(hidden, context([11])).hidden)
    assert replayed.selection is selection


@pytest.mark.parametrize("mode", ["sparse", "dense_warmup"])
def test_recall_is_measured_on_queries_with_a_choice(mode: str) -> None:
    attention = layer(
        mode=mode, topk=4, recall_rows=100, num_indexer_heads=12
    )  # with two heads scores would tie at zero
    hidden = torch.randn(20, 48)
    here = context([12, 3, 5], num_tokens=15)
    value = attention(hidden, here).meters["dsa_recall/0"].item()
    query, key, _ = attention.projection(hidden, here.rotary)
    index_query, index_key, gate = attention.sa_indexer(hidden, here.rotary)
    chosen = dsa.index_topk(index_query, index_key, gate, (12, 3, 5), (12, 3, 5), 4)
    ratios = []
    for t in range(4, 12):  # the second sequence has three keys, the third is the tail
        logits = torch.einsum("hk,shk->hs", query[t], key[: t + 1].repeat_interleave(2, dim=1)) * 32**-0.5
        mass = logits.softmax(-1).mean(0)
        ratios.append((mass[chosen[t].long()].sum() / mass.topk(4).values.sum()).item())
    assert value == pytest.approx(sum(ratios) / len(ratios), rel=1e-5)
    others = attention.recalls(hidden, here, rows=100, generator=torch.Generator().manual_seed(0))
    assert others["indexer"].item() == pytest.approx(value, rel=1e-5)
    assert {name: 0 < share < 1 for name, share in others.items()} == dict.fromkeys(["indexer", "last", "random"], True)


def test_no_recall_without_a_choice_or_if_none_is_wanted() -> None:
    hidden = torch.randn(9, 48)
    assert "dsa_recall/0" not in layer(topk=9)(hidden, context([9])).meters
    assert "dsa_recall/0" not in layer(topk=2, recall_rows=0)(hidden, context([9])).meters
    assert layer(topk=9).recalls(hidden, context([9]), rows=4) == {}


def test_warm_up_lifts_recall_above_the_last_keys() -> None:
    attention = warm(topk=6, recall_rows=64)
    torch.manual_seed(1)
    with torch.no_grad():
        attention.projection.q_proj.weight.mul_(8)
        attention.projection.q_norm.weight.mul_(4)  # a peaked teacher
    hidden = torch.randn(96, 48)
    optimizer = torch.optim.Adam(attention.sa_indexer.parameters(), lr=1e-2)
    before = attention.recalls(hidden, context([48, 48]), 64)
    for _ in range(80):
        optimizer.zero_grad()
        attention(hidden, context([48, 48])).losses["indexer_kl"].backward()
        optimizer.step()
    after = attention.recalls(hidden, context([48, 48]), 64)
    assert after["last"] == before["last"]
    assert after["indexer"] > max(0.85, before["indexer"] + 0.1, after["last"] + 0.1)


@pytest.mark.parametrize("arguments", [{"mode": "dense"}, {"recall_rows": -1}])
def test_bad_training_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        layer(**arguments)
