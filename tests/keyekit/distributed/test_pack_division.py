"""A pack cut into runs: put together again it is the pack, and every query still knows its keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from keyekit.batch import IGNORED_LABEL, Batch, Segments, VisionBatch
from keyekit.distributed.pack_division import divide_pack
from keyekit.testing.tiny import tiny_batch

PACKS = {
    "odd": lambda: tiny_batch(lengths=(9, 14, 1, 6), grids=((2, 4), (8, 4), None, (2, 2)), tail=5),
    "one sequence": lambda: tiny_batch(lengths=(24,), grids=((4, 4),), tail=0),
    "text": lambda: tiny_batch(lengths=(3, 4), grids=(None, None), tail=2),
    "fewer tokens than ranks": lambda: tiny_batch(lengths=(2,), grids=(None,), tail=0),
}


def visible(queries: Segments) -> list[tuple[int, int]]:
    """First key and one past the last key that each query sees, by the contract of segments."""
    found, key = [], 0
    for length, keys in zip(queries.lengths, queries.key_lengths, strict=True):
        found += [(key, key + keys - length + place + 1) for place in range(length)]
        key += keys
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4, 5])
@pytest.mark.parametrize("name", PACKS)
def test_the_runs_together_are_the_pack(name: str, ranks: int) -> None:
    whole = PACKS[name]()
    parts = [divide_pack(whole, rank, ranks) for rank in range(ranks)]
    assert len({len(part.tokens) for part in parts}) == 1
    total = whole.segments.total
    joined = torch.cat([part.tokens for part in parts])
    assert torch.equal(joined[:total], whole.tokens)
    assert not joined[total:].any()
    labels = torch.cat([part.labels for part in parts])
    assert torch.equal(labels[:total], whole.labels)
    assert (labels[total:] == IGNORED_LABEL).all()
    assert torch.equal(torch.cat([part.positions for part in parts], dim=1)[:, :total], whole.positions)
    assert sum(part.num_targets for part in parts) == whole.num_targets
    assert all(part.num_targets == int((part.labels != IGNORED_LABEL).sum()) for part in parts)
    for part in parts:
        assert part.part is not None
        assert part.part.num_tokens == whole.samples[-1].stop
        assert part.part.segments.total == ranks * len(part.tokens)
    assert sum(part.part.num_queries for part in parts if part.part) == whole.samples[-1].stop


@pytest.mark.parametrize("ranks", [2, 4, 5])
@pytest.mark.parametrize("name", PACKS)
def test_every_query_sees_the_keys_that_it_sees_in_the_pack(name: str, ranks: int) -> None:
    whole = PACKS[name]()
    found = []
    for rank in range(ranks):
        part = divide_pack(whole, rank, ranks).part
        assert part is not None
        assert part.queries.key_total == part.segments.total
        found += visible(part.queries)
        assert part.held.lengths == part.held.key_lengths
        assert len(part.held) == len(part.segments)
    assert found[: whole.segments.total] == visible(whole.segments)


def features(vision: VisionBatch | None) -> Tensor:
    """A number for each token: the sum over its patches, row-major as the tiny grids are not merged apart here."""
    if vision is None:
        return torch.zeros(0)
    return vision.patches.flatten(1).sum(dim=1).view(-1, 4).sum(dim=1)


@pytest.mark.parametrize("ranks", [2, 4, 5])
@pytest.mark.parametrize("name", PACKS)
def test_features_land_where_they_land_in_the_pack(name: str, ranks: int) -> None:
    whole = PACKS[name]()
    expected = torch.zeros(whole.segments.total).index_copy(0, whole.vision_index, features(whole.vision))
    rows = []
    for rank in range(ranks):
        part = divide_pack(whole, rank, ranks)
        assert part.vision is None or sum(part.vision.frames) == len(part.vision.grids)
        space = torch.zeros(len(part.tokens) + 1)
        rows.append(space.index_copy(0, part.vision_index, features(part.vision))[:-1])
    assert torch.equal(torch.cat(rows)[: whole.segments.total], expected)


def clip() -> Batch:
    """A video of four frames of four tokens, in 20 tokens."""
    batch = tiny_batch(lengths=(20,), grids=((16, 4),), tail=0)
    assert batch.vision is not None
    return replace(batch, vision=VisionBatch(patches=batch.vision.patches, grids=((4, 4),) * 4, frames=(4,)))


@pytest.mark.parametrize(("whole_videos", "kept"), [(False, [3, 2]), (True, [4, 4])])
def test_frames_go_with_their_tokens_unless_they_see_each_other(whole_videos: bool, kept: list[int]) -> None:
    # Tokens 1 to 16: the border at 10 runs through the third frame.
    parts = [divide_pack(clip(), rank, 2, whole_videos=whole_videos) for rank in range(2)]
    visions = [part.vision for part in parts]
    assert [len(vision.grids) for vision in visions if vision] == kept
    assert [vision.frames for vision in visions if vision] == (
        [(4,), (4,)] if whole_videos else [(1,) * n for n in kept]
    )
    assert [len(part.vision_index) for part in parts] == [4 * n for n in kept]
    assert [int((part.vision_index < 10).sum()) for part in parts] == [9, 7]


def test_samples_are_counted_from_the_beginning_of_the_run() -> None:
    whole = PACKS["odd"]()
    spans = [
        [(sample.id, sample.start, sample.stop) for sample in divide_pack(whole, rank, 4).samples] for rank in range(4)
    ]
    assert spans == [[("0", 0, 9)], [("1", 0, 9)], [("1", 0, 5), ("2", 5, 6), ("3", 6, 9)], [("3", 0, 3)]]


def test_a_part_copies_all_of_its_offsets() -> None:
    part = divide_pack(PACKS["odd"](), 1, 4).to("meta")
    assert part.part is not None
    assert all(
        segments.offsets.is_meta and segments.key_offsets.is_meta
        for segments in (part.segments, part.part.segments, part.part.held, part.part.queries)
    )


def test_a_part_is_not_divided_again() -> None:
    part = divide_pack(PACKS["odd"](), 1, 4)
    with pytest.raises(ValueError, match="part of a pack already"):
        divide_pack(part, 0, 2)
