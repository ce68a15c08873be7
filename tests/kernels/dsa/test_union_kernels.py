"""Kernels that build unions against the definition in PyTorch: chunks, spans, ragged sequences, room that was too small."""

import sys
from pathlib import Path

import pytest
import torch

from keyekit_kernels.dsa import union_kernels
from keyekit_kernels.dsa.union import Union, build_union
from keyekit_kernels.dsa.union_kernels import build_blocks, merge_blocks

sys.path.insert(0, str(Path(__file__).parent))
from test_union import selections

pytestmark = pytest.mark.interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (40, 0, 1, 33, 64), (70, 3, 5, 33, 64)
FIELDS = ("keys", "masks", "starts", "first", "size", "group", "num_queries", "selected", "lengths")


def assert_same(ours: Union, theirs: Union) -> None:
    for name in FIELDS:
        assert torch.equal(torch.as_tensor(getattr(ours, name)).cpu(), torch.as_tensor(getattr(theirs, name))), name


def on_device(group: int, topk: int = 5) -> tuple[torch.Tensor, Union, Union]:
    torch.manual_seed(0)
    indices = selections(*LENGTHS, topk=topk)
    indices[7] = -1
    return indices, build_blocks(indices.to(DEVICE), *LENGTHS, group), build_union(indices, *LENGTHS, group)


@pytest.mark.parametrize("group", [1, 8, 16, 32])
def test_unions_equal_the_definition(group: int) -> None:
    _, ours, theirs = on_device(group)
    assert_same(ours, theirs)


def test_chunks_spans_tiles_and_a_second_attempt_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, theirs = on_device(8)
    for name, value in (
        ("_SCRATCH_BYTES", 4 * 100),
        ("_SPAN", 32),
        ("_TILE", {"count": 16, "place": 16}),
        ("_ROOM", 1),
    ):
        monkeypatch.setattr(union_kernels, name, value)
    _, ours, _ = on_device(8)
    assert_same(ours, theirs)


@pytest.mark.parametrize("group", [8, 16])
def test_larger_blocks_are_merged_from_smaller_ones(group: int) -> None:
    indices, ours, _ = on_device(group)
    whole = build_union(indices, *LENGTHS, 32)
    assert ours.merged == whole.keys.shape[0]
    assert_same(merge_blocks(ours), whole)


def test_nothing_selected_and_nothing_there() -> None:
    none = build_blocks(torch.full((3, 2), -1, dtype=torch.int32, device=DEVICE), [3], [3], 2)
    assert none.starts.tolist() == [0, 0, 0]
    assert build_blocks(torch.zeros(0, 2, dtype=torch.int32, device=DEVICE), [], [], 2).num_blocks == 0
