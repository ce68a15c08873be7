import json

import numpy as np
import pytest

from keyekit.data.world.scene import COLORS, Label, MovingObject, Scene, bounce


def test_bounce_reflects_at_both_walls():
    travelled = np.array([0.0, 3.0, 8.0, 12.0, -6.0])
    positions = bounce(np.array(5.0), travelled, np.array(0.0), np.array(10.0))
    assert positions.tolist() == [5.0, 8.0, 7.0, 3.0, 1.0]


def test_boxes_stay_inside_and_keep_their_size():
    ball = MovingObject(color="red", shape="circle", diameter=17, center=(20.0, 9.0), velocity=(31.0, -17.0))
    for second in np.arange(0, 12, 0.25):
        left, top, right, bottom = ball.box(float(second), 56)
        assert min(left, top) >= 0
        assert max(right, bottom) <= 56
        assert right - left == bottom - top == 17


def test_events_tell_what_changes_while_the_clip_runs():
    always = MovingObject(color="red", shape="circle", diameter=10, center=(10, 10))
    passing = MovingObject(color="blue", shape="ring", diameter=10, center=(40, 40), appears=1.0, disappears=2.5)
    scene = Scene(size=56, fps=4.0, duration=4.0, background=(30, 30, 30), objects=(always, passing))
    assert scene.events() == [
        {"second": 1.0, "event": "appears", "object": "blue ring"},
        {"second": 2.5, "event": "disappears", "object": "blue ring"},
    ]
    assert [passing.is_visible(second) for second in (0.75, 1.0, 2.25, 2.5)] == [False, True, True, False]


@pytest.mark.parametrize("duration", [0.0, 4.0])
def test_a_record_gives_the_scene_back(duration):
    thing = MovingObject(color="red", shape="circle", diameter=10, center=(10.5, 10.0))
    label = Label(text="42", color="cyan", height=20, center=(28.0, 28.0))
    scene = Scene(size=56, fps=4.0, duration=duration, background=(1, 2, 3), objects=(thing,), label=label)
    record = json.loads(json.dumps(scene.record()))
    again = Scene.from_record(record)
    assert again.record() == scene.record()
    assert again.objects[0].box(0.0, 56) == thing.box(0.0, 56)
    assert again.label == label


def test_colors_stay_apart():
    values = np.array(list(COLORS.values()), dtype=float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1e3 * np.eye(len(values))
    assert len(COLORS) == 8
    assert distances.min() > 80
