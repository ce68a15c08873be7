"""Sums by key in a fixed order against a loop."""

import torch

from keyekit_kernels.dsa.ordered_sum import add_in_order, cut_blocks


def test_rows_are_added_in_ascending_order_and_to_nowhere_if_they_belong_there() -> None:
    keys = torch.tensor([2, 0, 5, 2, 2, 0, 5])
    part = torch.tensor([1.0, 3e7, torch.nan, 1e8, -1e8, 1.0, torch.inf])[:, None].repeat(1, 3)
    total = torch.zeros(5, 3)
    total[4] = 7.0
    add_in_order(total, keys, part)
    expected = torch.zeros(5)
    for key, row in zip(keys.tolist(), part[:, 0], strict=True):
        if key < 5:
            expected[key] = expected[key] + row  # in float32: another order gives another sum
    expected[4] = 7.0
    assert torch.equal(total, expected[:, None].expand(5, 3))
    assert expected[2] == 0.0


def test_ranges_cover_all_blocks_and_fit_or_hold_one() -> None:
    starts = [0, 4, 4, 10, 11, 30, 31]
    for budget in (1, 4, 7, 20, 100):
        ranges = cut_blocks(starts, row_bytes=1, budget=budget)
        assert [block for begin, end in ranges for block in range(begin, end)] == list(range(6))
        assert all(starts[end] - starts[begin] <= budget or end == begin + 1 for begin, end in ranges)
    assert cut_blocks([0], row_bytes=1, budget=5) == []
