"""The task families of the world, one builder each."""

from keyekit.data.world.families.arithmetic import arithmetic
from keyekit.data.world.families.attributes import attribute, attribute_many, captions
from keyekit.data.world.families.base import Builder, Item, Question
from keyekit.data.world.families.counting import count
from keyekit.data.world.families.events import order, temporal
from keyekit.data.world.families.grounding import box, digits

__all__ = ["FAMILIES", "Builder", "Item", "Question"]

FAMILIES: dict[str, Builder] = {
    "attribute": attribute,
    "attribute_many": attribute_many,
    "count": count,
    "order": order,
    "temporal": temporal,
    "digits": digits,
    "box": box,
    "arithmetic": arithmetic,
    "captions": captions,
}
"""Builder of each task family by name."""
