"""The final answer in a generated text."""

from __future__ import annotations

import re
import string

__all__ = ["extract_answer", "extract_yes_no"]

_BOXED = "\\boxed{"
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


def extract_yes_no(text: str, ascii_punctuation_only: bool = False) -> str | None:
    """``"是"``, ``"否"`` or, if the text says neither or both, ``None`` (Keye-VL 8B sheet 8.3 items 1 and 2).

    Args:
        text: A response; what stands inside ``<think>`` does not count. English ``yes`` and ``no`` count where neither Chinese
            word stands alone.
        ascii_punctuation_only: The released scorer strips no full-width punctuation, so that "是。" says neither; ``True``
            reproduces that.

    Example:
        >>> extract_yes_no("是。"), extract_yes_no("是。", ascii_punctuation_only=True)
        ('是', None)
    """
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    punctuation = string.punctuation + ("" if ascii_punctuation_only else _FULL_WIDTH)
    words = text.translate(str.maketrans(dict.fromkeys(punctuation, " "))).lower().split()
    for yes, no in (("是", "否"), ("yes", "no")):
        if (yes in words) != (no in words):
            return "是" if yes in words else "否"
    return None
