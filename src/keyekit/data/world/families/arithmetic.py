"""Sums and differences in text alone, for what a model must not forget while it learns to see."""

from __future__ import annotations

from zlib import crc32

from keyekit.data.world.draw import Draw
from keyekit.data.world.families.base import Item, Question
from keyekit.data.world.stage import Stage

__all__ = ["arithmetic", "is_held_out"]

_LARGEST = 50


def is_held_out(left: int, sign: str, right: int) -> bool:
    """Whether a problem belongs to the held-out split; about one in five does, and no other split ever asks it."""
    # A checksum, because a linear rule would give the held-out results a pattern of their own.
    return crc32(f"{left}{sign}{right}".encode()) % 5 == 0


def arithmetic(draw: Draw, stage: Stage) -> Item:
    """A sum or a difference of two numbers up to 50 whose result is not negative."""
    while True:
        left, right, sign = draw.whole(0, _LARGEST), draw.whole(0, _LARGEST), draw.one("+-")
        if sign == "-" and right > left:
            left, right = right, left
        if is_held_out(left, sign, right) == (draw.split == "heldout"):
            break
    result = left + right if sign == "+" else left - right
    return Item(questions=(Question(text=f"What is {left} {sign} {right}?", answer=str(result)),))
