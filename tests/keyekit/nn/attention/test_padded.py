"""Padded groups of sequences: everything is in them once, and comes back in order."""

from __future__ import annotations

import pytest
import torch

from keyekit.batch import Segments
from keyekit.nn.attention.padded import padded_plan, query_positions, similar


@pytest.mark.parametrize(
    ("lengths", "keys"),
    [((5, 1, 170, 0, 40), (5, 1, 170, 0, 40)), ((1, 1, 1), (9, 300, 0)), ((3, 2), (0, 0)), ((), ())],
)
def test_rows_come_back_in_packed_order(lengths: tuple[int, ...], keys: tuple[int, ...]) -> None:
    plan = padded_plan(lengths, keys, "cpu")
    packed = torch.randn(sum(lengths), 3)
    assert not lengths or torch.equal(plan.join([packed[group.rows] for group in plan.groups]), packed)
    assert all(group.columns.shape[0] == group.rows.shape[0] for group in plan.groups)


def test_columns_are_the_keys_of_the_same_sequences() -> None:
    (group,) = padded_plan((2, 1), (4, 3), "cpu").groups
    assert group.rows.tolist() == [[0, 1], [2, 2]]
    assert group.columns.tolist() == [[0, 1, 2, 3], [4, 5, 6, 6]]
    assert group.valid.tolist() == [0, 1, 2]


def test_sizes_far_apart_are_not_padded_to_each_other() -> None:
    sizes = [(1, 5000), (1, 10), (300, 0), (1, 6000), (310, 0), (1, 12)]
    assert similar(sizes) == [[1, 5], [0, 3], [2, 4]]


def test_positions_count_what_is_stored() -> None:
    owner, position = query_positions(Segments.of([2, 0, 3, 1], key_lengths=[5, 2, 3, 9]))
    assert owner.tolist() == [0, 0, 2, 2, 2, 3]
    assert position.tolist() == [3, 4, 0, 1, 2, 8]
