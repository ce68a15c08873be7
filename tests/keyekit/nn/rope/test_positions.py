"""Multimodal positions: the sheets' test vectors."""

import pytest
import torch

from keyekit.nn.rope.positions import VisualSpan, multimodal_positions, rope_delta


@pytest.mark.parametrize(
    ("per_second", "frames_at", "after", "delta"),
    [(2.0, [3, 4, 5], [6, 7], -9), (1.0, [3, 5, 7], [8, 9], -7)],
)
def test_video_on_the_time_axis(per_second: float, frames_at: list[int], after: list[int], delta: int) -> None:
    # Keye-VL 8B sheet 2.3: 3 text, 3 frames of 2x2 merged, 2 text
    steps = tuple(int(k * (1 / per_second) * 2) for k in range(3))
    span = VisualSpan(start=3, rows=2, columns=2, frames=3, time_steps=steps)
    positions = multimodal_positions(17, [span])
    assert positions[0, 3:15].tolist() == [t for t in frames_at for _ in range(4)]
    assert positions[1, 3:7].tolist() == [3, 3, 4, 4]
    assert positions[2, 3:7].tolist() == [3, 4, 3, 4]
    assert positions[:, 15:].tolist() == [after] * 3
    assert rope_delta(positions) == delta


def test_image_vector() -> None:
    # Keye-VL 8B sheet 2.3: 2 text, image 2x3, 2 text
    positions = multimodal_positions(10, [VisualSpan(start=2, rows=2, columns=3)])
    assert positions[0, 2:8].tolist() == [2] * 6
    assert positions[1, 2:8].tolist() == [2, 2, 2, 3, 3, 3]
    assert positions[2, 2:8].tolist() == [2, 3, 4, 2, 3, 4]
    assert positions[:, 8:].tolist() == [[5, 6]] * 3
    assert rope_delta(positions) == -3


def test_an_image_advances_text_by_its_longer_side() -> None:
    # Keye-VL-2.0 sheet 16 item 7
    positions = multimodal_positions(1 + 15 + 1, [VisualSpan(start=1, rows=3, columns=5)])
    assert positions[:, -1].tolist() == [6, 6, 6]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 9), (12, 21), (20, 36)])
def test_decoding_goes_on_where_the_sequence_would(rows: int, columns: int) -> None:
    # Keye-VL-2.0 sheet 16 item 7: text advances by the longer side; index + delta is the position of what is decoded
    length = 3 + rows * columns + 2
    spans = [VisualSpan(start=3, rows=rows, columns=columns)]
    prompt, whole = multimodal_positions(length, spans), multimodal_positions(length + 4, spans)
    assert prompt[:, -1].tolist() == [3 + max(rows, columns) + 1] * 3
    for index in range(length, length + 4):
        assert whole[:, index].tolist() == [index + rope_delta(prompt)] * 3


def test_a_rate_above_two_lets_neighbours_share_a_step() -> None:
    # Keye-VL 8B sheet 2.3: steps are cut to whole numbers
    steps = tuple(int(frame / 2.01 * 2) for frame in range(4))
    positions = multimodal_positions(16, [VisualSpan(start=0, rows=2, columns=2, frames=4, time_steps=steps)])
    assert positions[0, ::4].tolist() == [0, 0, 1, 2]


def test_text_counts_up_on_all_axes() -> None:
    assert multimodal_positions(4, []).tolist() == [[0, 1, 2, 3]] * 3
    assert rope_delta(multimodal_positions(4, [])) == 0
    assert rope_delta(multimodal_positions(0, [])) == 0


def test_overlapping_and_overhanging_spans_are_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        multimodal_positions(6, [VisualSpan(start=0, rows=2, columns=2), VisualSpan(start=3, rows=1, columns=1)])
    with pytest.raises(ValueError, match="does not fit"):
        multimodal_positions(3, [VisualSpan(start=0, rows=2, columns=2)])
    with pytest.raises(ValueError, match="time steps"):
        multimodal_positions(9, [VisualSpan(start=0, rows=1, columns=1, frames=2, time_steps=(0,))])


def test_result_is_int64() -> None:
    assert multimodal_positions(3, []).dtype == torch.int64
