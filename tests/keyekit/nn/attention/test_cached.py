"""Attention over padded buffers against the formula in float64."""

import pytest
import torch

from keyekit.nn.attention.cached import attend_padded


@pytest.mark.parametrize("lengths", [(7,), (7, 7), (1, 9, 4)])
def test_padded_attention_equals_the_formula_for_each_sequence(lengths: tuple[int, ...]) -> None:
    heads, groups, width, longest = 6, 2, 8, max(lengths)
    query = torch.randn(len(lengths), heads, width, dtype=torch.float64)
    key, value = torch.randn(2, len(lengths), groups, longest, width, dtype=torch.float64)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mixed = attend_padded(query, key, value, None if mask.all() else mask)
    for row, length in enumerate(lengths):
        for head in range(heads):
            own_key, own_value = key[row, head // 3, :length], value[row, head // 3, :length]
            weights = (own_key @ query[row, head] / width**0.5).softmax(0)
            torch.testing.assert_close(mixed[row, head], weights @ own_value)
