"""The way through a file: against the cheapest of all ways."""

from itertools import product

import numpy as np
import pytest

from keyekit.data.video.route import route
from keyekit.data.video.table import FrameTable


def table_of(frames: int, keys: set[int]) -> FrameTable:
    return FrameTable.of_packets(range(frames), [n in keys for n in range(frames)], [False] * frames, 0.04)


def cost(table: FrameTable, wanted: list[int], jumps: tuple[bool, ...], seek_cost: int) -> int:
    """Frames decoded, and what jumps cost, when it is given before which wanted frames there is a jump."""
    total, stands = 0, 0
    for frame, jump in zip(wanted, jumps, strict=True):
        if jump:
            total, stands = total + seek_cost, int(table.entry[frame])
        total, stands = total + frame - stands, frame
    return total


@pytest.mark.parametrize("seed", range(12))
def test_no_way_is_cheaper(seed: int) -> None:
    random = np.random.default_rng(seed)
    keys = {0, *random.integers(0, 400, random.integers(1, 20)).tolist()}
    table = table_of(400, keys)
    wanted = sorted(random.choice(400, 8, replace=False).tolist())
    stretches = route(table, wanted, seek_cost=16)
    assert [frame for stretch in stretches for frame in stretch.frames] == wanted
    starts = {stretch.frames[0] for stretch in stretches if stretch.entry_ticks is not None}
    taken = tuple(frame in starts for frame in wanted)
    cheapest = min(cost(table, wanted, jumps, 16) for jumps in product((False, True), repeat=8))
    assert cost(table, wanted, taken, 16) == cheapest


def test_dense_frames_are_one_stretch_from_the_start() -> None:
    (stretch,) = route(table_of(300, {0, 100, 200}), list(range(0, 300, 12)))
    assert stretch.entry_ticks is None
    assert route(table_of(10, {0}), []) == []


def test_a_stretch_knows_its_keyframe() -> None:
    first, second = route(table_of(300, {0, 100, 200}), [3, 250])
    assert (first.entry_ticks, second.entry_ticks, second.frames) == (None, 200, (250,))
