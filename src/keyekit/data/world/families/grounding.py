"""Reading and pointing in images: numbers written with a font, and bounding boxes."""

from __future__ import annotations

from keyekit.data.world.draw import Draw
from keyekit.data.world.families.base import Item, Question
from keyekit.data.world.scene import COLORS, SHAPES, Label
from keyekit.data.world.stage import Stage

__all__ = ["box", "digit", "digits"]

_NUMBERS = (*9 * tuple(range(10)), *range(10, 100))
"""As many cards of one digit as of two: short numbers are how a model learns to read the long ones."""

_DIGIT_WORDINGS = ("Which number is written in the image?", "Read the number.")
_BOX_WORDINGS = ("Where is the {}?", "Give the bounding box of the {}.")
_COORDINATES = 1000  # Keye-VL 8B sheet, section 4.5: integers in [0, 1000), normalised per image


def digit(draw: Draw, stage: Stage) -> Item:
    """A JPEG image with one digit written in it; every digit is equally frequent."""
    return _written(draw, stage, tuple(range(10)), chance=0.1)


def digits(draw: Draw, stage: Stage) -> Item:
    """A JPEG image with a number of one or two digits written in it."""
    return _written(draw, stage, _NUMBERS, chance=9 / len(_NUMBERS))


def _written(draw: Draw, stage: Stage, numbers: tuple[int, ...], chance: float) -> Item:
    number = draw.deck("number", numbers)
    height = draw.whole(round(0.4 * stage.size), round(0.6 * stage.size))
    # A character of the font is at most 0.65 of its height wide, so this keeps two of them inside the picture.
    margin_x, margin_y = min(0.65 * height + 1, stage.size / 2), 0.45 * height + 1
    center = (
        round(float(draw.random.uniform(margin_x, stage.size - margin_x)), 1),
        round(float(draw.random.uniform(margin_y, stage.size - margin_y)), 1),
    )
    label = Label(text=str(number), color=draw.one(list(COLORS)), height=height, center=center)
    question = Question(text=draw.one(_DIGIT_WORDINGS), answer=label.text, chance=chance)
    return Item(questions=(question,), scene=stage.image(draw, label=label), suffix=".jpg")


def box(draw: Draw, stage: Stage) -> Item:
    """A PNG image of one to three objects: the bounding box of one of them."""
    number = draw.whole(1, 3)
    looks = list(zip(draw.some(list(COLORS), number), draw.some(SHAPES, number), strict=True))
    objects = stage.place(draw, looks, diameter=(0.2, 0.36), speed=(0.0, 0.0))
    target = draw.one(objects)
    corners = target.box(0.0, stage.size)
    scaled = [min(_COORDINATES - 1, corner * _COORDINATES // stage.size) for corner in corners]
    question = Question(
        text=draw.one(_BOX_WORDINGS).format(target.phrase),
        answer=f"<|box_start|>[[{', '.join(map(str, scaled))}]]<|box_end|>",
        subject=target.phrase,
    )
    return Item(questions=(question,), scene=stage.image(draw, objects), suffix=".png")
