"""Previews show the right frames of the right sample."""

import numpy as np

from keyekit.batch import SampleInfo
from keyekit.callbacks.previews import draw_preview, pictures_of
from keyekit.data.packing import collate
from keyekit.data.processing.patchify import unpatchify
from keyekit.metrics.answers import Prediction
from keyekit.testing.tiny import tiny_batch


def test_pictures_of_each_sample() -> None:
    batch = tiny_batch(lengths=(9, 5, 14), grids=((2, 4), None, (4, 2)))
    first, none, last = (pictures_of(batch, index) for index in range(3))
    assert [len(first), len(none), len(last)] == [1, 0, 1]
    np.testing.assert_array_equal(first[0], unpatchify(batch.vision.patches[:8], 2, 4))
    np.testing.assert_array_equal(last[0], unpatchify(batch.vision.patches[8:], 4, 2))
    assert callable(collate)


def test_a_preview_holds_every_frame_and_marks_the_verdict() -> None:
    frames = [np.full((56, 56, 3), level, np.uint8) for level in (10, 60, 110)]
    info = SampleInfo(
        id="s", task="count", start=0, stop=1, question="How many?", answer="2", timestamps=(0.0, 0.5, 1.0)
    )
    right, wrong = (np.asarray(draw_preview(Prediction(info, text), frames)) for text in ("2", "3"))
    for number, level in enumerate((10, 60, 110)):
        assert (right[76, 8 + 56 + number * 116] == level).all()
    green, red = (
        (picture == color).all(axis=-1).any() for picture, color in ((right, (0, 120, 0)), (wrong, (190, 0, 0)))
    )
    assert green
    assert red
    assert not (wrong == (0, 120, 0)).all(axis=-1).any()
