"""The final answer in a generated text."""

from __future__ import annotations

import re
import string

__all__ = ["extract_answer", "extract_yes_no"]

_BOXED = "\\boxed{"
_RELEASED_MARKS = r""";/[]"{}()=+\_->`<@,?!"""
_FULL_WIDTH = "。，、；：？！“”‘’（）《》【】…—～·「」『』．"


def extract_answer(text: str) -> str:
    r"""The part of a response that is compared with the expected answer (Keye-VL 8B sheet 2.5).

    What follows the last ``</analysis>``, of that what follows the last ``</think>``; then the inside of the last
    ``<answer>``, if there is one; then the inside of the last ``\boxed{}`` whose braces match, if there is one.

    Example:
        >>> extract_answer("<think>5?</think><answer>It is \\boxed{\\frac{1}{2}}.</answer>")
        '\\frac{1}{2}'
    """
    text = text.rpartition("</analysis>")[2]
    text = text.rpartition("</think>")[2]
    answers = re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL)
    text = answers[-1] if answers else text
    boxed = _last_boxed(text)
    return text if boxed is None else boxed


def _last_boxed(text: str) -> str | None:
    start = text.rfind(_BOXED)
    while start >= 0:
        inside = start + len(_BOXED)
        depth = 1
        for place in range(inside, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                return text[inside:place]
        start = text.rfind(_BOXED, 0, start)
    return None


def extract_yes_no(text: str, as_released: bool = False) -> str | None:
    """``"是"``, ``"否"`` or, if the text says neither or both, ``None`` (Keye-VL 8B sheet 8.3 items 1 and 2).

    Args:
        text: A response; what stands inside ``<think>`` does not count. English ``yes`` and ``no`` count where neither Chinese
            word stands alone.
        as_released: Split into words as the released scorer does: it knows some ASCII punctuation and none of full width, so
            that "是。" says neither, and English words in small letters alone.

    Example:
        >>> extract_yes_no("是。"), extract_yes_no("是。", as_released=True)
        ('是', None)
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    words = _released_words(text) if as_released else _words(text)
    for yes, no in (("是", "否"), ("yes", "no")):
        if (yes in words) != (no in words):
            return "是" if yes in words else "否"
    return None


def _words(text: str) -> list[str]:
    return text.translate(str.maketrans(dict.fromkeys(string.punctuation + _FULL_WIDTH, " "))).lower().split()


def _released_words(text: str) -> list[str]:
    """Marks next to a space vanish, others become one; all vanish where a comma groups digits; dots vanish outside numbers."""
    grouped, words = re.search(r"\d,\d", text) is not None, text
    for mark in _RELEASED_MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        words = words.replace(mark, "" if beside_space or grouped else " ")
    return re.sub(r"(?<!\d)\.(?!\d)", "", words).split()
