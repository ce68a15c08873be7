"""How many objects a clip shows."""

from __future__ import annotations

from keyekit.data.world.draw import Draw
from keyekit.data.world.families.base import Item, Question
from keyekit.data.world.scene import COLORS, SHAPES
from keyekit.data.world.stage import Stage

__all__ = ["count"]

_WORDINGS = ("How many objects are there?", "How many objects do you see?", "Count the objects.")
_NUMBERS = (1, 2, 3, 4)


def count(draw: Draw, stage: Stage) -> Item:
    """A clip of one to four objects, every number equally often; sizes do not depend on the number."""
    number = draw.deck("number", _NUMBERS)
    looks = [(draw.one(list(COLORS)), draw.one(SHAPES)) for _ in range(number)]
    objects = stage.place(draw, looks, diameter=(0.2, 0.3), speed=(0.02, 0.12))
    question = Question(text=draw.one(_WORDINGS), answer=str(number), chance=1 / len(_NUMBERS))
    return Item(questions=(question,), scene=stage.clip(draw, objects), suffix=".mp4")
