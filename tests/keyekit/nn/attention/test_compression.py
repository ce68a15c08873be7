"""Summaries: which tokens they are made of, who sees them, and which larger blocks they speak for."""

from __future__ import annotations

import pytest
import torch

from keyekit.batch import Segments
from keyekit.nn.attention import compression
from keyekit.nn.attention.compression import BlockCompressor, Summaries, block_importance, completed_blocks


def test_blocks_begin_every_stride_and_are_complete() -> None:
    blocks = completed_blocks((7, 2, 0, 5), (7, 2, 0, 5), 4, 2, "cpu")
    assert blocks.counts == (2, 0, 0, 1)
    assert blocks.members.tolist() == [[0, 1, 2, 3], [2, 3, 4, 5], [9, 10, 11, 12]]
    assert blocks.rows.tolist() == blocks.ends.tolist() == [3, 5, 12]


def test_new_tokens_complete_blocks_that_began_before_them() -> None:
    blocks = completed_blocks((1, 1, 2), (6, 5, 9), 4, 2, "cpu")
    assert blocks.counts == (2, 1, 3)
    assert blocks.rows.tolist() == [0, 2]
    assert blocks.members.tolist() == [[2, 3, 4, 5], [15, 16, 17, 18]]
    assert blocks.ends.tolist() == [3, 5, 9, 14, 16, 18]


def test_a_compressor_knows_the_places_in_a_block() -> None:
    torch.manual_seed(0)
    compressor, blocks = BlockCompressor(4, 8, 16), torch.randn(3, 4, 2, 8)
    assert compressor(blocks).shape == (3, 2, 8)
    assert not torch.allclose(compressor(blocks), compressor(blocks.flip(1)))
    torch.testing.assert_close(compressor(blocks)[1, 1], compressor(blocks[1:2, :, 1:])[0, 0])
    assert not torch.allclose(compressor.position[0], compressor.position[1])


@pytest.mark.parametrize(("block", "stride", "size"), [(4, 2, 4), (4, 4, 8), (2, 1, 6), (32, 16, 64)])
def test_importance_is_overlap_in_strides(block: int, stride: int, size: int) -> None:
    torch.manual_seed(0)
    length, num_blocks = 5 * size - 1, 5
    starts = range(0, length - block + 1, stride)
    attention = torch.rand(3, len(starts), dtype=torch.float64)
    importance = block_importance(attention, block, stride, size, num_blocks)
    for number in range(num_blocks):
        own = set(range(number * size, (number + 1) * size))
        overlap = torch.tensor([len(own & set(range(start, start + block))) / stride for start in starts]).double()
        torch.testing.assert_close(importance[:, number], attention @ overlap)


def test_who_sees_no_summary_gets_zeros_and_gives_no_gradient() -> None:
    torch.manual_seed(0)
    segments = Segments.of([6, 2])
    key, value = torch.randn(2, 2, 2, 8, dtype=torch.float64, requires_grad=True)
    query = torch.randn(8, 4, 8, dtype=torch.float64, requires_grad=True)
    mixed = Summaries(key, value, (2, 0), segments, 4, 2).attend(query)
    assert not mixed[[0, 1, 2, 6, 7]].any()
    torch.testing.assert_close(mixed[[3, 4]], value[0].repeat_interleave(2, 0).expand(2, -1, -1))
    (gradient,) = torch.autograd.grad(mixed.sum(), query)
    assert gradient.isfinite().all()
    assert not gradient[[0, 1, 2, 6, 7]].any()


@torch.no_grad()
def test_queries_ranked_in_pieces_choose_alike(monkeypatch) -> None:
    torch.manual_seed(0)
    segments, query = Segments.of([21, 30]), torch.randn(51, 4, 8)
    counts = completed_blocks(segments.lengths, segments.key_lengths, 4, 2, "cpu").counts
    summaries = Summaries(torch.randn(sum(counts), 2, 8), torch.randn(sum(counts), 2, 8), counts, segments, 4, 2)
    whole = summaries.choose(query, size=4, topk=3, initial=1, local=1)
    monkeypatch.setattr(compression, "_CHUNK", 4)
    assert torch.equal(summaries.choose(query, size=4, topk=3, initial=1, local=1), whole)
    assert (whole[:, :, 0] == 0).all()
