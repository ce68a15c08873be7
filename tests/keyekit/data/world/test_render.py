import numpy as np
import pytest

from keyekit.data.world.render import render, stamp
from keyekit.data.world.scene import COLORS, SHAPES, Label, MovingObject, Scene


def test_every_shape_fills_its_box_and_differs_from_the_others():
    stamps = {shape: stamp(shape, 20)[..., 0] for shape in SHAPES}
    for shape, coverage in stamps.items():
        assert coverage.shape == (20, 20)
        for edge in (coverage[0], coverage[-1], coverage[:, 0], coverage[:, -1]):
            assert edge.max() > 0, f"{shape} does not reach the border of its box"
    shapes = list(stamps)
    for index, shape in enumerate(shapes):
        for other in shapes[index + 1 :]:
            assert np.abs(stamps[shape] - stamps[other]).mean() > 0.1, (shape, other)


def test_an_unknown_shape_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'blob'.*circle"):
        stamp("blob", 10)


def test_objects_are_drawn_where_and_when_they_are():
    thing = MovingObject(
        color="red", shape="square", diameter=12, center=(16.0, 20.0), velocity=(8.0, 0.0), appears=1.0, disappears=3.0
    )
    scene = Scene(size=56, fps=4.0, duration=4.0, background=(30, 30, 30), objects=(thing,))
    frames = render(scene)
    assert frames.shape == (16, 56, 56, 3)
    assert frames.dtype == np.uint8
    for frame, second in zip(frames, scene.seconds(), strict=True):
        expected = np.full((56, 56, 3), 30, np.uint8)
        if 1.0 <= second < 3.0:
            left, top, right, bottom = thing.box(second, 56)
            expected[top:bottom, left:right] = COLORS["red"]
        assert np.array_equal(frame, expected), second


def test_labels_are_drawn_in_their_color_inside_the_picture():
    label = Label(text="47", color="yellow", height=30, center=(28.0, 28.0))
    frame = render(Scene(size=56, background=(20, 20, 20), label=label))[0]
    ink = np.abs(frame.astype(int) - COLORS["yellow"]).max(axis=-1) < 10
    assert ink.sum() > 60
    assert not ink[0].any()
    assert not ink[:, -1].any()
