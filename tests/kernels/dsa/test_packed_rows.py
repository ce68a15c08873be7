"""Rows of a pack against loops over sequences."""

import pytest
import torch

from keyekit_kernels.dsa.packed_rows import check_lengths, cut_chunks, cut_tiles, remembered, visible_keys

QUERIES, KEYS = (5, 0, 1, 9), (8, 3, 1, 9)


def rows_of_the_pack() -> list[tuple[int, int]]:
    """Visible keys and first key of each packed query."""
    rows, start = [], 0
    for queries, keys in zip(QUERIES, KEYS, strict=True):
        rows += [(keys - queries + 1 + t, start) for t in range(queries)]
        start += keys
    return rows


def test_visible_keys_are_those_up_to_the_own_position() -> None:
    visible, first_key = visible_keys(QUERIES, KEYS)
    assert visible.dtype == first_key.dtype == torch.int32
    assert list(zip(visible.tolist(), first_key.tolist(), strict=True)) == rows_of_the_pack()
    assert [x.tolist() for x in visible_keys([], [])] == [[], []]


@pytest.mark.parametrize("block", [1, 2, 4, 64])
@pytest.mark.parametrize(("skip", "rows"), [(0, None), (3, None), (6, range(2, 9)), (99, None), (0, range(4, 4))])
def test_tiles_cover_each_scored_query_once(block: int, skip: int, rows: range | None) -> None:
    covered = {}
    for first, count, first_key, visible in cut_tiles(QUERIES, KEYS, block, skip, rows):
        assert 1 <= count <= block
        for t in range(count):
            assert first + t not in covered
            covered[first + t] = visible + t, first_key
    wanted = {
        t: row
        for t, row in enumerate(rows_of_the_pack())
        if row[0] > skip and t in (range(15) if rows is None else rows)
    }
    assert covered == wanted


@pytest.mark.parametrize("budget", [1, 10, 16, 50, 10_000])
@pytest.mark.parametrize("skip", [0, 4, 99])
def test_chunks_follow_each_other_within_the_budget(budget: int, skip: int) -> None:
    chunks = cut_chunks(QUERIES, KEYS, budget, multiple=2, skip=skip)
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(15))
    rows = rows_of_the_pack()
    for chunk in chunks:
        scored = [visible for visible, _ in rows[chunk.start : chunk.stop] if visible > skip]
        assert chunk.width == -(-max(scored, default=0) // 2) * 2
        assert (chunk.stop - chunk.start) * chunk.width <= budget or chunk.stop - chunk.start == 1


def test_a_chunk_is_as_large_as_the_budget_lets_it_be() -> None:
    chunks = cut_chunks(QUERIES, KEYS, 30, multiple=1)
    rows = rows_of_the_pack()
    for chunk in chunks[:-1]:
        longer = max(visible for visible, _ in rows[chunk.start : chunk.stop + 1])
        assert (chunk.stop + 1 - chunk.start) * longer > 30


@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [
        ([2], [1], "sequence 0 has 2 queries and 1 keys"),
        ([-1], [1], "sequence 0 has -1 queries"),
        ([1, 1], [2], "query_lengths has 2 sequences, key_lengths has 1"),
        ([2], [4], "query_lengths add up to 2, query has 3 rows"),
        ([3], [3], "key_lengths add up to 3, key has 4 rows"),
    ],
)
def test_wrong_lengths_are_named(queries, keys, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_lengths(queries, keys, 3, 4)


def test_what_lengths_give_is_made_once_and_can_be_learnt_from_wherever_it_was_asked_first() -> None:
    made = []

    @remembered
    def ask(lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
        made.append(lengths)
        return torch.tensor(lengths, dtype=torch.float32, device=device)

    device = torch.device("cpu")
    with torch.inference_mode():
        first = ask((1, 2), device)
    assert ask((1, 2), device) is first
    assert ask((2, 1), device).tolist() == [2.0, 1.0]
    assert made == [(1, 2), (2, 1)]
    weight = torch.ones(2, requires_grad=True)
    (weight * first).sum().backward()  # a tensor of inference mode could not be kept for this
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0, 2.0]
