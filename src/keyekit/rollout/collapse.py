"""Where an answer begins to say the same again and again: the tau of MOPD (2.0 sheet 10.7, whose detector is not published)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["CollapseDetector"]


@dataclass(frozen=True, kw_only=True)
class CollapseDetector:
    """Finds the first stretch of tokens that repeats a block over and over.

    A block of up to ``longest_block`` tokens counts if it is followed by itself at least ``repeats`` times, and if these
    repetitions are at least ``tokens`` tokens together. The values are ours.

    Args:
        longest_block: Most tokens of a block.
        repeats: Repetitions behind the block's first occurrence.
        tokens: Tokens of all repetitions together.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> detector = CollapseDetector(longest_block=4, repeats=2, tokens=4)
        >>> detector.point([7, 1, 2, 1, 2, 1, 2, 9]), detector.point([1, 2, 3, 4, 5, 6])
        (3, -1)
    """

    longest_block: int = 64
    repeats: int = 3
    tokens: int = 32

    def __post_init__(self) -> None:
        for name in ("longest_block", "repeats", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")

    def point(self, answer: Sequence[int]) -> int:
        """The first token that repeats, counted from 0; -1 if the answer does not collapse."""
        ids = np.asarray(answer)
        first = -1
        for block in range(1, min(self.longest_block, len(ids) - 1) + 1):
            wanted = max(self.tokens, self.repeats * block)
            if wanted > len(ids) - block:
                continue
            same = ids[block:] == ids[:-block]
            # A run of equal tokens a block apart ends where they differ.
            breaks = np.flatnonzero(np.concatenate(([True], ~same, [True])))
            long = np.flatnonzero(np.diff(breaks) > wanted)
            if len(long):
                begin = int(breaks[long[0]]) + block
                first = begin if first < 0 else min(first, begin)
        return first

    def collapsed(self, answer: Sequence[int]) -> bool:
        """Whether it collapses anywhere."""
        return self.point(answer) >= 0

    def __call__(self, answer: Sequence[int]) -> bool:
        """Whether it repeats itself at its end; what an engine asks while a response goes on.

        Takes microseconds however long the answer is: nothing but its last repetitions is looked at, and those of few blocks.
        """
        before = reversed(answer[-1 - self.longest_block : -1])
        return any(token == answer[-1] and self._repeats(answer, block) for block, token in enumerate(before, 1))

    def _repeats(self, answer: Sequence[int], block: int) -> bool:
        """Whether the answer ends with enough repetitions of its last ``block`` tokens."""
        wanted = max(self.tokens, self.repeats * block)
        return answer[-wanted:] == answer[-wanted - block : -block]
