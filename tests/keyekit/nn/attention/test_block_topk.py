"""The layer that chooses blocks by their mean keys: its arguments and scores. Its numbers are in test_conformance.py."""

from __future__ import annotations

import pytest
import torch

from keyekit.nn.attention import block_topk
from keyekit.nn.attention.block_topk import BlockTopK, block_means, block_scores
from keyekit.testing.tiny import tiny_context, tiny_layer_spec


def test_bad_arguments_are_refused() -> None:
    for arguments, message in (
        ({"block_size": 0}, "block_size=0: a block holds"),
        ({"topk_blocks": 0}, "topk_blocks=0: .* own block"),
        ({"choose_per": "layer"}, "choose_per='layer': .* 'group' or per 'head'"),
    ):
        with pytest.raises(ValueError, match=message):
            BlockTopK(tiny_layer_spec(), **arguments)


def test_scores_are_products_with_mean_keys() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 7, 4, 8), torch.randn(1, 7, 2, 8)
    means = block_means(key, 3)
    torch.testing.assert_close(means[0, 1], key[0, 3:6].mean(0))
    per_head, per_group = block_scores(query, means, 4), block_scores(query, means, 2)
    torch.testing.assert_close(per_head[0, 5, 3, 1], query[0, 5, 3] @ key[0, 3:6, 1].mean(0))
    torch.testing.assert_close(per_group, per_head.unflatten(2, (2, 2)).sum(3))


def test_scores_stay_in_float32_under_autocast() -> None:
    query, key = torch.randn(1, 7, 4, 8), torch.randn(1, 7, 2, 8)
    expected = block_scores(query, block_means(key, 3), 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block_scores(query, block_means(key, 3), 2), expected)


@torch.no_grad()
def test_queries_scored_in_pieces_choose_alike(monkeypatch) -> None:
    layer, hidden = BlockTopK(tiny_layer_spec(), block_size=3, topk_blocks=2), torch.randn(37, 32)
    whole = layer(hidden, tiny_context([20, 17]))
    monkeypatch.setattr(block_topk, "_CHUNK", 5)
    assert torch.equal(layer(hidden, tiny_context([20, 17])).selection, whole.selection)


@torch.no_grad()
def test_short_samples_are_not_scored(monkeypatch) -> None:
    layer = BlockTopK(tiny_layer_spec(), block_size=3, topk_blocks=4)
    monkeypatch.setattr(block_topk, "best_blocks", None)
    output = layer(torch.randn(19, 32), tiny_context([12, 7]))
    assert output.meters["selected_share"] == 1
    assert output.selection[11, 0].tolist() == [0, 1, 2, 3]
