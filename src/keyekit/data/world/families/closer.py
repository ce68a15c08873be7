"""A small object in a large picture: who does not look closer cannot tell what it is."""

from __future__ import annotations

from dataclasses import replace

from keyekit.data.world.draw import Draw
from keyekit.data.world.families.base import Item, Question
from keyekit.data.world.scene import COLORS, SHAPES
from keyekit.data.world.stage import Stage

__all__ = ["closer"]

_LOOKS = [(color, shape) for color in COLORS for shape in SHAPES]
_SCALE = 1000
_LARGER = 4
"""The picture has so many times the side of others, and the part that is shown has theirs."""
_STEP = 125  # boxes begin on a grid of eighths


def closer(draw: Draw, stage: Stage) -> Item:
    """An image of one small object: its shape. The answer calls the image tool, which shows the part around it (8B sheet 5.4).

    Scaled down to the size of other pictures the object is a few pixels wide.
    """
    large = replace(stage, size=_LARGER * stage.size)
    color, shape = draw.deck("look", _LOOKS)
    (thing,) = large.place(draw, [(color, shape)], diameter=(0.09, 0.11), speed=(0.0, 0.0))
    left, top = (_begin(center * _SCALE / large.size) for center in thing.center)
    side = _SCALE // _LARGER
    question = Question(
        text="What shape is the object?",
        answer=shape,
        chance=1 / len(SHAPES),
        subject=thing.phrase,
        closer=(left, top, left + side, top + side),
    )
    return Item(questions=(question,), scene=large.image(draw, [thing]), suffix=".png")


def _begin(center: float) -> int:
    """Where a part begins that holds a small object with this centre, in thousandths."""
    side = _SCALE // _LARGER
    return min(max(round((center - side / 2) / _STEP) * _STEP, 0), _SCALE - side)
