"""Colour and shape: of the only object, of one among several, and as captions of images, with the place or without."""

from __future__ import annotations

from dataclasses import replace

from keyekit.data.world.draw import Draw
from keyekit.data.world.families.base import Item, Question, choose_options
from keyekit.data.world.scene import COLORS, SHAPES
from keyekit.data.world.stage import Stage

__all__ = ["attribute", "attribute_many", "captions", "captions_placed"]

_VALUES = {"color": list(COLORS), "shape": list(SHAPES)}
_LOOKS = [(color, shape) for color in COLORS for shape in SHAPES]
_COLUMNS = {" left": (0.0, 0.36), "": (0.42, 0.58), " right": (0.64, 1.0)}
_ROWS = {"top": (0.0, 0.46), "bottom": (0.54, 1.0)}
_PLACES = [f"{row}{column}" for row in _ROWS for column in _COLUMNS]
_PLACED = [(color, shape, place) for color, shape in _LOOKS for place in _PLACES]
_WORDINGS = {
    "color": ("What color is the object?", "Which color does the object have?"),
    "shape": ("What shape is the object?", "Which shape does the object have?"),
}


def _multiple_choice(question: str, options: list[str]) -> str:
    return "\n".join([question, "Options:", *options])


def attribute(draw: Draw, stage: Stage) -> Item:
    """A clip of one object: its colour and its shape, each out of four options."""
    values = dict(zip(("color", "shape"), draw.deck("look", _LOOKS), strict=True))
    objects = stage.place(draw, [(values["color"], values["shape"])], diameter=(0.36, 0.58))
    questions = []
    for kind, answer in values.items():
        options = choose_options(draw, f"{kind} position", answer, [], _VALUES[kind])
        questions.append(
            Question(
                text=_multiple_choice(draw.one(_WORDINGS[kind]), options),
                answer=answer,
                kind=kind,
                options=tuple(options),
                chance=1 / len(options),
                subject=objects[0].phrase,
            )
        )
    return Item(questions=tuple(questions), scene=stage.clip(draw, objects), suffix=".mp4")


def attribute_many(draw: Draw, stage: Stage) -> Item:
    """A clip of two to four objects: the colour of the one with a shape, the shape of the one with a colour.

    The other objects' attributes are among the options, so knowing what is in the clip is not enough.
    """
    count = draw.whole(2, 4)
    looks = list(zip(draw.some(_VALUES["color"], count), draw.some(_VALUES["shape"], count), strict=True))
    objects = stage.place(draw, looks, diameter=(0.2, 0.29), speed=(0.02, 0.12))
    questions = []
    for kind, named in (("color", "shape"), ("shape", "color")):
        target = draw.one(objects)
        answer = getattr(target, kind)
        present = [getattr(thing, kind) for thing in objects]
        options = choose_options(draw, f"{kind} position", answer, present, _VALUES[kind])
        asked = f"the {target.shape}" if named == "shape" else f"the {target.color} object"
        questions.append(
            Question(
                text=_multiple_choice(f"What {kind} is {asked}?", options),
                answer=answer,
                kind=kind,
                options=tuple(options),
                chance=1 / len(options),
                subject=target.phrase,
            )
        )
    return Item(questions=tuple(questions), scene=stage.clip(draw, objects), suffix=".mp4")


def captions(draw: Draw, stage: Stage) -> Item:
    """An image of one object with its caption; every look is equally frequent."""
    color, shape = draw.deck("look", _LOOKS)
    objects = stage.place(draw, [(color, shape)], diameter=(0.22, 0.58))  # from the smallest of any task to the largest
    question = Question(
        text="Describe the image.",
        answer=f"{'an' if color == 'orange' else 'a'} {color} {shape}",
        chance=1 / len(_LOOKS),
        subject=objects[0].phrase,
    )
    return Item(questions=(question,), scene=stage.image(draw, objects), suffix=".png")


def captions_placed(draw: Draw, stage: Stage) -> Item:
    """An image of one object with a caption that also says where it is: 288 different captions, equally frequent.

    Consecutive items never share a caption within 288 of them, so 256 held-out images have 256 distinct captions.
    """
    color, shape, place = draw.deck("look and place", _PLACED)
    (thing,) = stage.place(draw, [(color, shape)], diameter=(0.22, 0.56))
    row = next(row for row in _ROWS if place.startswith(row))
    spans = (_COLUMNS[place.removeprefix(row)], _ROWS[row])
    margin = thing.diameter / 2 / stage.size
    center = tuple(
        round(float(draw.random.uniform(max(low, margin), min(high, 1 - margin)) * stage.size), 1)
        for low, high in spans
    )
    thing = replace(thing, center=(center[0], center[1]))
    article = "an" if color == "orange" else "a"
    question = Question(
        text="Describe the image.",
        answer=f"{article} {thing.phrase} at the {place}",
        chance=1 / len(_PLACED),
        subject=thing.phrase,
    )
    return Item(questions=(question,), scene=stage.image(draw, [thing]), suffix=".png")
