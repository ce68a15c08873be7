"""Unions of adjacent selections against sets."""

import pytest
import torch

from keyekit_kernels.dsa import reference
from keyekit_kernels.dsa.union import build_union


def selections(query_lengths, key_lengths, topk: int) -> torch.Tensor:
    """Random exact selections of packed sequences whose queries are their last positions."""
    rows, start = [], 0
    for queries, keys in zip(query_lengths, key_lengths, strict=True):
        visible = torch.arange(keys - queries + 1, keys + 1)
        local = reference.select_topk(torch.randn(queries, keys), visible, topk)
        local = torch.nn.functional.pad(local, (0, topk - local.shape[1]), value=-1)
        rows.append(torch.where(local < 0, local, local + start))
        start += keys
    return torch.cat(rows)


@pytest.mark.parametrize("group", [1, 3, 4, 16])
def test_a_union_holds_each_selected_key_once_with_who_selected_it(group: int) -> None:
    query_lengths, key_lengths = (5, 0, 1, 7), (9, 3, 1, 7)
    indices = selections(query_lengths, key_lengths, topk=4)
    union = build_union(indices, query_lengths, key_lengths, group)
    blocks = [(f, s) for f, s in zip(union.first.tolist(), union.size.tolist(), strict=True)]
    expected, start = [], 0
    for length in query_lengths:
        expected += [(start + a, min(group, length - a)) for a in range(0, length, group)]
        start += length
    assert blocks == expected
    for block, (first, size) in enumerate(blocks):
        span = slice(union.starts[block], union.starts[block + 1])
        keys, masks = union.keys[span].tolist(), union.masks[span].tolist()
        chosen = [set(indices[first + q].tolist()) - {-1} for q in range(size)]
        assert keys == sorted(set().union(*chosen))
        assert masks == [sum(1 << q for q in range(size) if key in chosen[q]) for key in keys]
    assert union.selected == (indices >= 0).sum()


def test_sharing_is_one_when_neighbours_agree_and_the_group_when_they_never_do() -> None:
    same = torch.arange(4, dtype=torch.int32).expand(8, -1).contiguous()
    assert build_union(same, [8], [40], 4).sharing == 1
    apart = torch.arange(32, dtype=torch.int32).view(8, 4)
    assert build_union(apart, [8], [40], 4).sharing == 4


def test_chunks_of_blocks_give_the_same(monkeypatch) -> None:
    indices = selections((11, 4), (20, 9), topk=5)
    whole = build_union(indices, (11, 4), (20, 9), 2)
    monkeypatch.setattr("keyekit_kernels.dsa.union._CHUNK_BYTES", 4 * 20 * 3)
    parts = build_union(indices, (11, 4), (20, 9), 2)
    for name in ("keys", "masks", "starts", "first", "size"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))


def test_nothing_selected_and_nothing_there() -> None:
    none = build_union(torch.full((3, 2), -1, dtype=torch.int32), [3], [3], 2)
    assert none.starts.tolist() == [0, 0, 0]
    assert build_union(torch.zeros(0, 2, dtype=torch.int32), [], [], 2).num_blocks == 0


@pytest.mark.parametrize("group", [0, 33])
def test_a_group_out_of_range_is_refused(group: int) -> None:
    with pytest.raises(ValueError, match="a block holds 1 to 32 queries"):
        build_union(torch.zeros(1, 1, dtype=torch.int32), [1], [1], group)


@pytest.mark.parametrize("group", [1, 4, 8])
def test_larger_blocks_of_a_union_are_those_built_at_once(group: int) -> None:
    lengths = (19, 0, 5), (23, 2, 9)
    indices = selections(*lengths, topk=4)
    indices[3] = -1
    ours, whole = build_union(indices, *lengths, group).regrouped(16), build_union(indices, *lengths, 16)
    for name in ("keys", "masks", "starts", "first", "size", "group", "num_queries", "selected"):
        assert torch.equal(torch.as_tensor(getattr(ours, name)), torch.as_tensor(getattr(whole, name))), name
    assert whole.regrouped(24) is whole


@pytest.mark.parametrize(("begin", "end"), [(0, 4), (1, 3), (2, 3)])
def test_tiles_cover_each_block_and_none_is_left_over_but_the_last(begin: int, end: int) -> None:
    union = build_union(selections((8,), (30,), topk=9), [8], [30], group=2)
    blocks, starts = (tensor.tolist() for tensor in union.tiles(4, begin, end))
    sizes = union.starts.diff().tolist()
    expected = [(block, start) for block in range(begin, end) for start in range(0, sizes[block], 4)]
    assert list(zip(blocks, starts, strict=True))[: len(expected)] == expected
    assert set(blocks[len(expected) :]) <= {end}
