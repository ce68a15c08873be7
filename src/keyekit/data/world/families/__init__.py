"""The task families of the world, one builder each."""

from keyekit.data.world.families.arithmetic import arithmetic
from keyekit.data.world.families.attributes import attribute, attribute_many, captions, captions_placed
from keyekit.data.world.families.base import Builder, Item, Question
from keyekit.data.world.families.closer import closer
from keyekit.data.world.families.counting import count
from keyekit.data.world.families.events import order, temporal
from keyekit.data.world.families.grounding import box, digit, digits
from keyekit.data.world.families.needle import needle
from keyekit.data.world.families.thinking import in_modes, larger, long_sum, look
from keyekit.data.world.families.told import told, told_events, told_objects, told_place

__all__ = ["FAMILIES", "Builder", "Item", "Question"]

FAMILIES: dict[str, Builder] = {
    "attribute": attribute,
    "attribute_many": attribute_many,
    "count": count,
    "order": order,
    "temporal": temporal,
    "digit": digit,
    "digits": digits,
    "box": box,
    "arithmetic": arithmetic,
    "captions": captions,
    "captions_placed": captions_placed,
    "needle": needle,
    "look": look,
    "closer": closer,
    "larger": larger,
    "long_sum": long_sum,
    "larger_in_modes": in_modes(larger),
    "long_sum_in_modes": in_modes(long_sum),
    "told_attribute": told(attribute, told_objects),
    "told_count": told(count, told_objects),
    "told_order": told(order, told_events),
    "told_captions": told(captions_placed, told_place),
}
"""Builder of each task family by name."""
