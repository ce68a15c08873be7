"""Where each frame is, and where decoding must begin: against a count by hand."""

import numpy as np

from keyekit.data.video.table import FrameTable


def test_frames_are_put_in_the_order_of_showing() -> None:
    # decoding order I0 P3 B1 B2 | I4 P7 B5 B6, one tick is half a second
    table = FrameTable.of_packets([0, 3, 1, 2, 4, 7, 5, 6], [True, *[False] * 3] * 2, [False] * 8, 0.5)
    assert table.ticks.tolist() == list(range(8))
    assert table.position.tolist() == [0, 2, 3, 1, 4, 6, 7, 5]
    assert table.entry.tolist() == [0] * 4 + [4] * 4
    assert table.entry_ticks.tolist() == [0] * 4 + [4] * 4
    assert table.seconds.tolist() == [n / 2 for n in range(8)]
    assert (len(table), table.fps) == (8, 2.0)


def test_leading_pictures_need_the_group_before() -> None:
    # I0 P1 | I4 B2 B3 P5: frames 2 and 3 follow the second keyframe in the file and are shown before it
    table = FrameTable.of_packets([0, 1, 4, 2, 3, 5], [True, False, True, False, False, False], [False] * 6, 1.0)
    assert table.entry.tolist() == [0, 0, 0, 0, 2, 2]
    assert table.before(4) == (0, 0)
    assert table.before(0) == (0, 0)


def test_what_cannot_be_decoded_or_is_hidden_is_no_frame() -> None:
    keys = [False, False, True, False, True, False]
    table = FrameTable.of_packets([10, 11, 12, 13, 14, 15], keys, [False, False, True, False, False, False], 1.0)
    assert table.ticks.tolist() == [13, 14, 15]
    assert table.entry.tolist() == [2, 4, 4]  # a hidden keyframe still opens its group
    assert table.seconds.tolist() == [0, 1, 2]
    empty = FrameTable.of_packets([1, 2], [False, False], [False, False], 1.0)
    assert (len(empty), len(empty.seconds), empty.fps) == (0, 0, 1.0)


def test_an_index_is_enough_at_a_constant_rate_alone() -> None:
    table = FrameTable.of_index([-1024, -512, 0, 512], [True, False, True, False], 0, 1 / 12800)
    assert table is not None
    assert table.ticks.tolist() == [0, 512, 1024, 1536]
    assert table.entry.tolist() == [0, 0, 2, 2]
    assert FrameTable.of_index([0, 512, 1025], [True, False, False], 0, 1.0) is None
    assert FrameTable.of_index([0, 0], [True, False], 0, 1.0) is None
    assert FrameTable.of_index([0, 1], [False, True], 0, 1.0) is None
    assert FrameTable.of_index([], [], 0, 1.0) is None


def test_counted_frames() -> None:
    table = FrameTable.counted(4, 8.0)
    np.testing.assert_allclose(table.seconds, [0, 0.125, 0.25, 0.375])
    assert not table.timed
