"""Choices of blocks and the rows they stand for."""

from __future__ import annotations

from importlib.metadata import version

import pytest
import torch

from keyekit.batch import Segments
from keyekit.nn.attention.blocks import all_blocks, attend_to_rows, best_blocks, block_rows
from keyekit_kernels.dsa.reference import attention_over_selection


def test_the_own_block_is_always_chosen_and_the_future_never() -> None:
    scores = torch.tensor([[5.0, -9.0, 3.0, 50.0], [5.0, torch.nan, 5.0, -1.0]])
    own = torch.tensor([[1, 3]])
    chosen = best_blocks(scores[None, :, None], own, topk=3, width=4)
    assert chosen[0, :, 0].tolist() == [[0, 1, -1, -1], [0, 2, 3, -1]]
    assert best_blocks(scores[None, :, None], own, topk=2, width=2)[0, :, 0].tolist() == [[0, 1], [0, 3]]
    assert chosen.dtype == torch.int32


def test_rows_end_at_the_query_and_stay_in_its_sequence() -> None:
    segments = Segments.of([2, 1], key_lengths=[4, 5])
    blocks = torch.tensor([[[0, 1]], [[1, -1]], [[0, 2]]], dtype=torch.int32)
    rows = block_rows(blocks, segments, 2)
    assert rows[:, 0].tolist() == [[0, 1, 2, -1], [2, 3, -1, -1], [4, 5, 8, -1]]


def test_all_blocks_are_all_rows() -> None:
    segments = Segments.of([3, 0, 2], key_lengths=[3, 0, 5])
    rows = block_rows(all_blocks(segments, 2, 2), segments, 2)
    assert [[row for row in own if row >= 0] for own in rows[:, 1].tolist()] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [3, 4, 5, 6],
        [3, 4, 5, 6, 7],
    ]


@pytest.mark.parametrize("choosers", [2, 6])
def test_every_chooser_attends_to_its_own_rows(choosers: int) -> None:
    torch.manual_seed(0)
    segments = Segments.of([5, 4])
    query = torch.randn(9, 6, 8, dtype=torch.float64)
    key, value = torch.randn(2, 9, 2, 8, dtype=torch.float64)
    blocks = all_blocks(segments, 1, choosers).clone()
    drop = torch.rand(blocks.shape) < 0.4
    drop[:, :, 0] = False
    blocks = blocks.masked_fill(drop, 99).sort(dim=-1).values
    rows = block_rows(blocks.masked_fill(blocks == 99, -1), segments, 1)
    mixed = attend_to_rows(query, key, value, rows, segments, "torch")
    for head in range(6):
        own = [tensor[:, head // 3, None] for tensor in (key, value)]
        alone, _ = attention_over_selection(query[:, head, None], *own, rows[:, head * choosers // 6], 8**-0.5)
        torch.testing.assert_close(mixed[:, head, None], alone)


def _release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.mark.skipif(
    _release("triton") < (3, 7) and _release("numpy") >= (2, 4) and not torch.cuda.is_available(),
    reason="Triton 3.6's interpreter needs numpy < 2.4",
)
@pytest.mark.parametrize("choosers", [2, 4])
def test_kernels_agree_in_outputs_and_gradients(choosers: int) -> None:
    """On a GPU, or through the interpreter: groups of one head and packs of one group are nothing that DSA itself has."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    segments = Segments.of([17, 0, 7], device=device)
    tensors = [torch.randn(24, heads, 16, device=device, requires_grad=True) for heads in (4, 2, 2)]
    blocks = all_blocks(segments, 2, choosers).clone()
    blocks[:, 0, 1:] = -1  # the choosers differ
    rows = block_rows(blocks, segments, 2)
    weight = torch.randn(24, 4, 16, device=device)
    results = []
    for implementation in ("torch", "triton"):
        mixed = attend_to_rows(*tensors, rows, segments, implementation)
        results.append((mixed, *torch.autograd.grad((mixed * weight).sum(), tensors)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
