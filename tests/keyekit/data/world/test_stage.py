import pytest

from keyekit.data.world.draw import Draw
from keyekit.data.world.stage import Stage


def _apart(first, second):
    return first[2] < second[0] or second[2] < first[0] or first[3] < second[1] or second[3] < first[1]


@pytest.mark.parametrize("index", range(25))
def test_objects_never_touch(index):
    stage = Stage(size=56, fps=4.0, seconds=4.0)
    looks = [("red", "circle"), ("blue", "square"), ("green", "ring"), ("pink", "cross")]
    objects = stage.place(Draw(0, "count", "train", index), looks, diameter=(0.2, 0.3), speed=(0.02, 0.12))
    for second in stage.clip(Draw(0, "count", "train", index), objects).seconds():
        boxes = [thing.box(second, stage.size) for thing in objects]
        assert all(_apart(first, second) for i, first in enumerate(boxes) for second in boxes[i + 1 :])


def test_too_many_objects_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        Stage(size=56).place(Draw(0, "count", "train", 0), [("red", "circle")] * 8, diameter=(0.4, 0.4))


def test_grid_includes_both_ends():
    assert Stage().grid(0.5, 2.0, 0.5) == [0.5, 1.0, 1.5, 2.0]
    assert Stage().grid(0.0, 0.0, 0.25) == [0.0]
