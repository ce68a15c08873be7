"""Which kind of token is which: formatting, perception, reasoning (2.0 sheet 10.7, whose categories are not published)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

__all__ = ["TokenCategories"]


class TokenCategories:
    """Categories of the tokens of an answer, by patterns over its text.

    Args:
        patterns: Regular expression of each category. A token belongs to the first one that matches any of its characters.
        decode: Turns tokens into text, such as a tokenizer's ``decode``.

    Raises:
        ValueError: If a pattern is no regular expression.

    Example:
        >>> words = ["<answer>", "3", " red", "</answer>"]
        >>> categories = TokenCategories({"formatting": r"</?answer>", "perception": r"[0-9]|red"}, lambda ids: words[ids[0]])
        >>> categories.of([0, 1, 2, 3])
        [0, 1, 1, 0]
    """

    def __init__(self, patterns: Mapping[str, str], decode: Callable[[list[int]], str]) -> None:
        self.names = tuple(patterns)
        self.decode = decode
        self._expressions = []
        for name, pattern in patterns.items():
            try:
                self._expressions.append(re.compile(pattern))
            except re.error as error:
                raise ValueError(f"the pattern of category {name!r} is no regular expression: {error}") from None

    def of(self, answer: Sequence[int]) -> list[int]:
        """Place of each token's category, -1 for none.

        A character whose bytes are spread over several tokens is seen as unreadable ones.
        """
        pieces = [self.decode([token]) for token in answer]
        ends = list(accumulate(map(len, pieces)))
        text = "".join(pieces)
        found = [-1] * len(pieces)
        for place in reversed(range(len(self._expressions))):  # so that the first category has the last word
            taken = bytearray(len(text))
            for match in self._expressions[place].finditer(text):
                taken[match.start() : match.end()] = b"\1" * (match.end() - match.start())
            for number, end in enumerate(ends):
                if any(taken[end - len(pieces[number]) : end]):
                    found[number] = place
        return found
