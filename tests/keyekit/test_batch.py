"""Segments and batches."""

import pytest
import torch

from keyekit.batch import Segments
from keyekit.testing.tiny import tiny_batch


def test_segments_hold_host_lengths_and_device_offsets() -> None:
    segments = Segments.of([3, 0, 2])
    assert segments.offsets.tolist() == [0, 3, 3, 5]
    assert segments.offsets.dtype == torch.int32
    assert (segments.total, segments.maximum, len(segments)) == (5, 3, 3)
    assert segments.is_square
    assert segments.key_offsets is segments.offsets


def test_queries_and_keys_may_differ() -> None:
    segments = Segments.of([1, 1], key_lengths=[4, 7])
    assert not segments.is_square
    assert (segments.key_total, segments.key_maximum) == (11, 7)
    assert segments.key_offsets.tolist() == [0, 4, 11]


@pytest.mark.parametrize(("lengths", "keys"), [([3], [2]), ([1, 2], [1]), ([-1], None)])
def test_impossible_lengths_are_refused(lengths, keys) -> None:
    with pytest.raises(ValueError, match="quer"):
        Segments.of(lengths, keys)


def test_an_empty_pack_has_no_maximum() -> None:
    assert Segments.of([]).maximum == 0


def test_moving_a_batch_moves_every_tensor_and_keeps_the_rest() -> None:
    batch = tiny_batch()
    moved = batch.to("meta")
    assert all(t.device.type == "meta" for t in (moved.tokens, moved.labels, moved.positions, moved.vision_index))
    assert moved.segments.offsets.device.type == "meta"
    assert moved.segments.key_offsets is moved.segments.offsets
    assert moved.vision.patches.device.type == "meta"
    assert (moved.samples, moved.num_targets, moved.segments.lengths) == (
        batch.samples,
        batch.num_targets,
        batch.segments.lengths,
    )
