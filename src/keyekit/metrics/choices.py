"""The letter of an option in the answer to a multiple-choice question."""

from __future__ import annotations

import re

__all__ = ["extract_choice", "extract_choice_as_released"]

_ANNOUNCED = r"(?i:answer|option|choice)(?i:\s+is)?[\s\W_]*?(?<![A-Za-z])([{letters}])(?![A-Za-z0-9])"
_LEADING = r"\W*([{letters}])(?:\W*$|[.):,：、]|\s*\n)"
_ALONE = r"(?<![A-Za-z0-9'’])(?!A\s+(?!or\b|and\b)[a-z])([{letters}])(?![A-Za-z0-9'’])"

_RELEASED_ANNOUNCEMENTS = re.compile(r"(?:Final )?Answer:|Best (?:answer|option):")
"""Announcements whose own capitals the official scripts do not take for an option."""


def extract_choice(text: str, letters: str) -> str | None:
    """The option that an answer names, or ``None`` if it names none or leaves open which.

    The last letter that follows "answer", "option" or "choice"; else a letter that the text begins with or is; else the only
    letter that stands by itself, where the article of "A man" is none.

    Args:
        text: The answer.
        letters: Letters of the options, such as ``"ABCD"``.

    Example:
        >>> [extract_choice(text, "ABCD") for text in ("C", "(B) a dog", "Based on it, the answer is D.", "A or B")]
        ['C', 'B', 'D', None]
    """
    announced = re.findall(_ANNOUNCED.format(letters=letters), text)
    if announced:
        return announced[-1]
    leading = re.match(_LEADING.format(letters=letters), text)
    if leading:
        return leading[1]
    alone = set(re.findall(_ALONE.format(letters=letters), text))
    return alone.pop() if len(alone) == 1 else None


def extract_choice_as_released(text: str, letters: str) -> str | None:
    """The option that the official scripts find: the first capital letter of the options anywhere, also within a word.

    Example:
        >>> extract_choice_as_released("Based on it, the answer is D.", "ABCD")
        'B'
    """
    found = re.search(f"[{letters}]", _RELEASED_ANNOUNCEMENTS.sub("", text))
    return found[0] if found else None
