"""A needle in a long clip: something that can be seen for one short moment alone."""

from __future__ import annotations

from dataclasses import replace

from keyekit.data.world.draw import Draw
from keyekit.data.world.families.base import Item, Question, choose_options
from keyekit.data.world.scene import COLORS, SHAPES
from keyekit.data.world.stage import Stage

__all__ = ["needle"]

_MOMENT = 1.0
"""Seconds that the needle is visible: at one frame a second it is in exactly one frame, at two in two."""
_WORDINGS = (
    "An object is seen only for a moment. What color is it?",
    "Which color does the object have that is seen only for a moment?",
)


def needle(draw: Draw, stage: Stage) -> Item:
    """A clip with one object throughout and another one for a second: the colour of the latter, out of four.

    The colour of the first object is among the options, and the second one is never there at the start. However long the
    clip is, the moment is as short, so that a longer clip is more hay.
    """
    looks = list(zip(draw.some(list(COLORS), 2), draw.some(SHAPES, 2), strict=True))
    target, other = stage.place(draw, looks, diameter=(0.28, 0.4), speed=(0.01, 0.05))
    start = draw.one(stage.grid(_MOMENT, stage.seconds - _MOMENT, 0.5))
    target = replace(target, appears=start, disappears=start + _MOMENT)
    options = choose_options(draw, "position", target.color, [other.color], list(COLORS))
    question = Question(
        text="\n".join([draw.one(_WORDINGS), "Options:", *options]),
        answer=target.color,
        options=tuple(options),
        chance=1 / len(options),
        subject=target.phrase,
    )
    return Item(questions=(question,), scene=stage.clip(draw, draw.shuffled([target, other])), suffix=".mp4")
