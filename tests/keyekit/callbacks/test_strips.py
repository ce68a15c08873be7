from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from keyekit.batch import SampleInfo, Segments, VisionBatch
from keyekit.callbacks.strips import draw_strip, frames_of
from keyekit.data.processing.patchify import normalise_patches, patchify
from keyekit.metrics.answers import Prediction

GREEN, RED, GREY = (0, 140, 60), (200, 30, 40), (120, 120, 120)


def ask(answer: str | None = "2", text: str = "2", timestamps=(), question="How many?") -> Prediction:
    info = SampleInfo(id="a", task="count", start=0, stop=4, answer=answer, timestamps=timestamps, question=question)
    return Prediction(info, text)


def test_each_sample_gets_its_own_frames(batch):
    first, second, third = (frames_of(batch, index) for index in range(3))
    assert [frame.shape for frame in first] == [(8, 16, 3), (8, 16, 3)]
    assert [frame.mean() for frame in first] == [0, 128]
    assert [frame.shape for frame in second] == [(16, 8, 3)]
    assert second[0].mean() == 255
    assert third == []


def test_a_pack_of_text_has_no_frames(batch):
    assert frames_of(replace(batch, vision=None, vision_index=torch.zeros(0, dtype=torch.int64)), 0) == []


def test_patches_that_do_not_fit_the_placeholders(batch):
    with pytest.raises(ValueError, match="24 patches cannot be merged into 5 placeholders"):
        frames_of(replace(batch, vision_index=batch.vision_index[:5]), 0)


def test_pixels_come_back_as_they_went_in(batch):
    picture = np.random.default_rng(0).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    vision = VisionBatch(patches=normalise_patches(patchify(picture[None])), grids=((2, 4),))
    pack = replace(batch, vision=vision, vision_index=torch.tensor([3, 4]), segments=Segments.of([32]))
    np.testing.assert_array_equal(frames_of(pack, 0)[0], picture)


@pytest.mark.parametrize(("answer", "text", "color"), [("2", "2", GREEN), ("2", "3", RED), (None, "3", GREY)])
def test_the_colour_tells_right_from_wrong(answer, text, color):
    strip = draw_strip(ask(answer, text), [])
    assert tuple(strip[0, 0]) == color


def test_frames_stand_side_by_side_in_rows():
    frames = [np.full((56, 56, 3), level, dtype=np.uint8) for level in (10, 60, 110, 160, 210)]
    strip = draw_strip(ask(), frames, frame_height=40, frames_per_row=3)
    assert strip.dtype == np.uint8
    centers = [26, 72, 118]
    assert [strip[26, x, 0] for x in centers] == [10, 60, 110]
    assert [strip[26 + 40 + 16 + 6, x, 0] for x in centers[:2]] == [160, 210]


def test_many_frames_are_thinned_out_evenly():
    frames = [np.full((8, 8, 3), level, dtype=np.uint8) for level in range(100)]
    strip = draw_strip(ask(), frames, frame_height=20, max_frames=3)
    assert [strip[16, x, 0] for x in (16, 42, 68)] == [0, 50, 99]


def test_seconds_and_texts_are_written():
    frames = [np.zeros((20, 20, 3), dtype=np.uint8)]
    plain, timed = draw_strip(ask(), frames), draw_strip(ask(timestamps=(1.5,)), frames)
    assert (plain != timed).any()
    assert (plain != draw_strip(ask(question="Which?"), frames)).any()
    assert (plain != draw_strip(ask(), frames, condition="blank")).any()


def test_a_long_question_makes_a_taller_strip():
    assert len(draw_strip(ask(question="word " * 200), [])) > len(draw_strip(ask(), [])) + 100
