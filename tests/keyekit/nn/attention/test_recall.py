"""Recall of a selection: which queries are measured, against what, and what trivial selections get."""

import pytest
import torch

from keyekit.batch import Segments
from keyekit.nn.attention import recall as module
from keyekit.nn.attention.recall import attention_mass, best_keys, last_keys, random_keys, recall, sample_rows
from keyekit_kernels import dsa

LENGTHS, KEY_LENGTHS = (7, 0, 3, 12), (7, 2, 9, 12)


def packed(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (22, 4, 8), (30, 2, 8), (22, 12, 4), (30, 4), (22, 12)  # with few heads scores would tie at zero
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def every_eligible(topk: int, num_tokens: int) -> list[tuple[int, int, int]]:
    rows, start, key_start = [], 0, 0
    for length, keys in zip(LENGTHS, KEY_LENGTHS, strict=True):
        for query in range(length):
            visible = keys - length + query + 1
            if visible > topk and start + query < num_tokens:
                rows.append((start + query, key_start, key_start + visible))
        start, key_start = start + length, key_start + keys
    return rows


@pytest.mark.parametrize("topk", [1, 3, 6, 8, 11])
@pytest.mark.parametrize("num_tokens", [22, 10, 15])
def test_queries_with_a_choice_are_sampled_evenly(topk: int, num_tokens: int) -> None:
    segments, expected = Segments.of(LENGTHS, KEY_LENGTHS), every_eligible(topk, num_tokens)
    rows = sample_rows(segments, topk, 100, num_tokens)
    if not expected:
        assert rows is None
        return
    assert list(zip(rows.queries.tolist(), rows.first.tolist(), rows.stop.tolist(), strict=True)) == expected
    few = sample_rows(segments, topk, 3, num_tokens)
    assert few.queries.tolist() == [
        expected[(2 * i + 1) * len(expected) // (2 * t)][0] for t in [len(few.queries)] for i in range(t)
    ]
    assert sample_rows(segments, topk, 0, num_tokens) is None


@pytest.mark.parametrize("elements", [2**25, 1], ids=["at once", "row by row"])
def test_mass_is_the_mean_attention_of_the_heads(elements: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "_ELEMENTS", elements)
    query, key, *_ = packed()
    rows = sample_rows(Segments.of(LENGTHS, KEY_LENGTHS), 3, 100, 22)
    mass = attention_mass(query, key, rows, 0.3)
    for number, (row, first, stop) in enumerate(every_eligible(3, 22)):
        expected = torch.zeros(30, dtype=torch.float64)
        for head in range(4):
            expected[first:stop] += (key[first:stop, head // 2] @ query[row, head] * 0.3).softmax(0) / 4
        torch.testing.assert_close(mass[number], expected)


@pytest.mark.parametrize("elements", [2**25, 1], ids=["at once", "row by row"])
def test_best_keys_are_those_of_the_door(elements: int, monkeypatch) -> None:
    monkeypatch.setattr(module, "_ELEMENTS", elements)
    *_, query, key, gate = packed()
    rows = sample_rows(Segments.of(LENGTHS, KEY_LENGTHS), 3, 100, 22)
    whole = dsa.index_topk(query, key, gate, LENGTHS, KEY_LENGTHS, 3)
    assert torch.equal(best_keys(query, key, gate, rows, 3).sort().values, whole[rows.queries].long())


def test_recall_is_one_for_the_best_keys_and_their_share_otherwise() -> None:
    query, key, *_ = packed()
    rows = sample_rows(Segments.of(LENGTHS, KEY_LENGTHS), 3, 100, 22)
    mass = attention_mass(query, key, rows, 1.0)
    best = mass.topk(3).indices
    assert recall(mass, best, 3).item() == pytest.approx(1.0)
    held = mass.gather(1, best[:, :2]).sum(1) / mass.gather(1, best).sum(1)
    padded = torch.cat([best[:, :2], torch.full_like(best[:, :1], -1)], dim=1).int()
    torch.testing.assert_close(recall(mass, padded, 3), held.mean())


def test_last_and_random_keys_are_visible_and_different() -> None:
    rows = sample_rows(Segments.of(LENGTHS, KEY_LENGTHS), 3, 100, 22)
    drawn = random_keys(rows, 3, 30, torch.Generator().manual_seed(0))
    last = last_keys(rows, 3)
    for selection in (drawn, last):
        assert ((selection >= rows.first[:, None]) & (selection < rows.stop[:, None])).all()
        assert all(len(set(row)) == 3 for row in selection.tolist())
    assert torch.equal(last, torch.stack([rows.stop - 1, rows.stop - 2, rows.stop - 3], dim=1))
    counts = torch.zeros(30)
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        counts[random_keys(rows, 3, 30, generator)[-1]] += 1  # the last query sees twelve keys
    assert (counts[18:30] / 400 - 3 / 12).abs().max() < 0.1
    assert not counts[:18].any()
