"""Time: which of two events comes first, and when an object is visible."""

from __future__ import annotations

from dataclasses import replace

from keyekit.data.world.draw import Draw
from keyekit.data.world.families.base import Item, Question
from keyekit.data.world.scene import COLORS, SHAPES
from keyekit.data.world.stage import Stage

__all__ = ["order", "temporal"]

_ORDER_WORDINGS = (
    "Which object appears first, the {} or the {}?",
    "Which object is seen first, the {} or the {}?",
    "Which one comes first, the {} or the {}?",
)
_TEMPORAL_WORDINGS = ("When is the {} visible?", "During which seconds can the {} be seen?")
_GAP = 1.0
"""Seconds between the two appearances at least, so that two frames a second tell them apart."""
_STEP = 0.5
"""Grid of the boundaries of visible spans in seconds."""


def order(draw: Draw, stage: Stage) -> Item:
    """A clip in which two objects of different colour and shape appear at different times and stay.

    Asked twice, with either object named first, so that the order of mention tells nothing.
    """
    looks = list(zip(draw.some(list(COLORS), 2), draw.some(SHAPES, 2), strict=True))
    first, second = stage.place(draw, looks, diameter=(0.25, 0.38), speed=(0.03, 0.15))
    later = draw.one(stage.grid(_GAP, stage.seconds - 1.0, 1 / stage.fps))
    earlier = draw.one(stage.grid(0.0, later - _GAP, 1 / stage.fps))
    first, second = replace(first, appears=earlier), replace(second, appears=later)
    mentions = [(first.phrase, second.phrase), (second.phrase, first.phrase)]
    if draw.deck("mention", (False, True)):
        mentions.reverse()
    questions = [
        Question(
            text=wording.format(*mention),
            answer=first.phrase,
            kind=kind,
            options=mention,
            chance=0.5,
            subject=first.phrase,
        )
        for kind, wording, mention in zip("ab", draw.some(_ORDER_WORDINGS, 2), mentions, strict=True)
    ]
    # Drawn in random order, so that nothing about the file depends on which object is the answer.
    return Item(questions=tuple(questions), scene=stage.clip(draw, draw.shuffled([first, second])), suffix=".mp4")


def temporal(draw: Draw, stage: Stage) -> Item:
    """A clip in which one object is visible for a span of time while another one is there throughout.

    The answer is ``"start - end"`` in seconds: visible from the start (included) until the end (excluded).
    """
    moments = stage.grid(0.0, stage.seconds, _STEP)
    spans = [
        (start, stop)
        for start in moments
        for stop in moments
        if start < stop and (start, stop) != (moments[0], moments[-1])
    ]
    start, stop = draw.one(spans)
    looks = list(zip(draw.some(list(COLORS), 2), draw.some(SHAPES, 2), strict=True))
    target, other = stage.place(draw, looks, diameter=(0.25, 0.38), speed=(0.03, 0.15))
    target = replace(target, appears=start, disappears=stop)
    question = Question(
        text=draw.one(_TEMPORAL_WORDINGS).format(target.phrase),
        answer=f"{start:.1f} - {stop:.1f}",
        subject=target.phrase,
    )
    return Item(questions=(question,), scene=stage.clip(draw, draw.shuffled([target, other])), suffix=".mp4")
