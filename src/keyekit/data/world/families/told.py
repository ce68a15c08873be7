"""The same questions about scenes that are told instead of shown: what a decoder learns before there are pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from keyekit.data.world.draw import Draw
from keyekit.data.world.families.base import Builder, Item
from keyekit.data.world.scene import MovingObject, Scene
from keyekit.data.world.stage import Stage

__all__ = ["told", "told_events", "told_objects", "told_place"]


def told(build: Builder, tell: Callable[[Draw, Item, Scene], str]) -> Builder:
    """The text twin of a task family: its questions, each behind a line that tells what there is to see.

    A decoder that learnt to answer from such lines can be taught to see by a projector alone, which has to turn pictures
    into what the decoder takes for these words (stage 1). Scenes are drawn from streams of their own, so told scenes are no
    shown ones.

    Args:
        build: The family with pictures.
        tell: Says in words what the scene of an item shows.
    """

    def build_told(draw: Draw, stage: Stage) -> Item:
        item = build(draw, stage)
        assert item.scene is not None
        line = f"Seen: {tell(draw, item, item.scene)}."
        return Item(questions=tuple(replace(question, text=f"{line}\n{question.text}") for question in item.questions))

    return build_told


def told_objects(draw: Draw, item: Item, scene: Scene) -> str:
    """All objects in random order."""
    return ", ".join(thing.phrase for thing in draw.shuffled(scene.objects))


def told_events(draw: Draw, item: Item, scene: Scene) -> str:
    """The objects in the order in which they appear."""

    def moment(thing: MovingObject) -> float:
        return thing.appears

    return ", then ".join(thing.phrase for thing in sorted(scene.objects, key=moment))


def told_place(draw: Draw, item: Item, scene: Scene) -> str:
    """The only object and where it is, in random order; the place is what the caption says behind "at the"."""
    place = item.questions[0].answer.partition(" at the ")[2]
    return ", ".join(draw.shuffled([scene.objects[0].phrase, place]))
