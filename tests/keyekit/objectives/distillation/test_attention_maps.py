import pytest
import torch

from keyekit.batch import Segments
from keyekit.objectives.distillation.attention_maps import AttentionMatching, QueriesAndKeys

SEGMENTS = Segments.of([4, 0, 3, 1])
MASK = torch.tensor([1, 1, 0, 1, 0, 1, 1, 0], dtype=torch.bool)


def layer(heads: int, groups: int, width: int, seed: int, learns: bool = False) -> QueriesAndKeys:
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(8, n, width, generator=generator, dtype=torch.float64) for n in (heads, groups))
    return QueriesAndKeys(queries=queries.requires_grad_(learns), keys=keys.requires_grad_(learns))


def attention(model, query: int, head: int):
    """Of one query and head over the tokens of its sequence so far, one by one."""
    start = {0: 0, 1: 0, 2: 0, 3: 0, 4: 4, 5: 4, 6: 4, 7: 7}[query]
    share = model.queries.shape[1] // model.keys.shape[1]
    scores = [
        torch.exp((model.queries[query, head] * model.keys[key, head // share]).sum() * model.queries.shape[2] ** -0.5)
        for key in range(start, query + 1)
    ]
    return [score / sum(scores) for score in scores]


def kl(p, q):
    return sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True))


def by_hand(student, teacher, heads):
    total = torch.zeros((), dtype=torch.float64)
    for query in range(8):
        if not MASK[query]:
            continue
        own, other = ([attention(m, query, h) for h in range(m.queries.shape[1])] for m in (student, teacher))
        if heads == "mean":
            own, other = ([[sum(column) / len(side) for column in zip(*side, strict=True)]] for side in (own, other))
        total = total + sum(kl(t, s) for s, t in zip(own, other, strict=True)) / len(own)
    return total / 5


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(("heads", "of_teacher"), [("each", 4), ("mean", 4), ("mean", 6)])
def test_equals_a_loop_over_queries_and_keys(heads, of_teacher, chunk) -> None:
    student, teacher = layer(4, 2, 3, 0, learns=True), layer(of_teacher, 2, 5, 1)
    output = AttentionMatching(heads, chunk)(student, teacher, SEGMENTS, MASK)
    expected = by_hand(student, teacher, heads)
    torch.testing.assert_close(output.loss, expected)
    leaves = (student.queries, student.keys)
    for ours, theirs in zip(
        torch.autograd.grad(output.loss, leaves), torch.autograd.grad(expected, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_same_attention_costs_nothing() -> None:
    student = layer(4, 2, 3, 0, learns=True)
    assert AttentionMatching("each")(student, student, SEGMENTS, MASK).loss.item() == pytest.approx(0, abs=1e-12)
    assert AttentionMatching()(student, student, SEGMENTS, torch.zeros(8, dtype=torch.bool)).loss.item() == 0


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="4 heads of the student, 6 of the teacher: choose heads='mean'"):
        AttentionMatching("each")(layer(4, 2, 3, 0), layer(6, 2, 3, 0), SEGMENTS, MASK)
    with pytest.raises(ValueError, match="heads='sum'"):
        AttentionMatching("sum")
    with pytest.raises(ValueError, match="query_chunk=0"):
        AttentionMatching(query_chunk=0)
