"""Questions with a thought before the answer: a look at a picture, a sum that has to be added up, and one that needs none."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from zlib import crc32

from keyekit.data.world.draw import Draw
from keyekit.data.world.families.attributes import captions
from keyekit.data.world.families.base import Builder, Item, Question
from keyekit.data.world.stage import Stage

__all__ = ["in_modes", "larger", "long_sum", "look"]

_MODES = ("auto", "think", "no_think")
_TERMS = 4
_EASY, _HARD = "Easy. /no_think", "Hard. /think"


def look(draw: Draw, stage: Stage) -> Item:
    """An image of one object: what it is, which are 48 answers. The thought is its colour, which is easier to see."""
    item = captions(draw, stage)
    (told,) = item.questions
    question = replace(told, text="What is it?", answer=told.subject, thought=told.subject.partition(" ")[0])
    return replace(item, questions=(question,))


def long_sum(draw: Draw, stage: Stage) -> Item:
    """A sum of four digits, in text alone; the thought adds one after the other. Hard to tell at a glance."""
    while True:
        terms = [draw.whole(1, 9) for _ in range(_TERMS)]
        if _is_held_out(terms) == (draw.split == "heldout"):
            break
    sums = list(accumulate(terms))
    steps = (f"{before}+{term}={after}" for (before, after), term in zip(pairwise(sums), terms[1:], strict=True))
    text = f"What is {'+'.join(map(str, terms))}?"
    question = Question(text=text, answer=str(sums[-1]), thought=" ".join(steps), analysis=_HARD)
    return Item(questions=(question,))


def larger(draw: Draw, stage: Stage) -> Item:
    """The larger of two numbers with different tens, in text alone; the thought spells out the tens. One glance is enough."""
    while True:
        left, right = draw.whole(10, 99), draw.whole(10, 99)
        if left // 10 != right // 10 and _is_held_out([left, right]) == (draw.split == "heldout"):
            break
    sign = "<" if left < right else ">"
    question = Question(
        text=f"Which is larger, {left} or {right}?",
        answer=str(max(left, right)),
        chance=0.5,
        thought=f"{left}: tens {left // 10}. {right}: tens {right // 10}. {left // 10}{sign}{right // 10}",
        analysis=_EASY,
    )
    return Item(questions=(question,))


def in_modes(build: Builder) -> Builder:
    """The same questions, each asked in one of the three response modes in turn (Keye-VL 8B sheet 5.4).

    In auto mode the answer follows the judgement: a question that needs no thought is answered without one.
    """

    def build_in_mode(draw: Draw, stage: Stage) -> Item:
        mode = draw.deck("mode", _MODES)
        return Item(questions=tuple(_asked(question, mode) for question in build(draw, stage).questions))

    return build_in_mode


def _asked(question: Question, mode: str) -> Question:
    glance = mode == "auto" and question.analysis is not None and question.analysis.endswith("/no_think")
    return replace(question, mode=mode, thought=None if glance else question.thought)


def _is_held_out(numbers: list[int]) -> bool:
    """About one problem in five belongs to the held-out split, and no other split ever asks it."""
    return crc32(" ".join(map(str, numbers)).encode()) % 5 == 0
