"""Seeded randomness that does not depend on who draws: every item has its own stream, and decks make choices even."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from zlib import crc32

import numpy as np

__all__ = ["SPLITS", "Draw"]

SPLITS: tuple[str, ...] = ("train", "heldout")
"""The splits of a world; their random streams are disjoint."""

Choice = TypeVar("Choice")


class Draw:
    """The random choices of one item of a world.

    The stream depends on the seed, the task, the split and the index alone, so items can be made in any order by any number
    of processes.

    Args:
        seed: Seed of the world.
        task: Name of the task family.
        split: ``"train"`` or ``"heldout"``.
        index: Which item of the split.

    Raises:
        ValueError: If the split is unknown.

    Example:
        >>> sorted(Draw(0, "count", "train", index).deck("answer", range(1, 5)) for index in range(4))
        [1, 2, 3, 4]
    """

    def __init__(self, seed: int, task: str, split: str, index: int) -> None:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
        self.split = split
        self.index = index
        self._key = (seed, crc32(task.encode()), SPLITS.index(split))
        self.random = np.random.default_rng((*self._key, 0, index))

    def deck(self, name: str, choices: Sequence[Choice]) -> Choice:
        """Deal from a shuffled deck that holds every choice once, so that consecutive items get each equally often.

        Args:
            name: Name of the deck; decks of different names are independent.
            choices: The cards.
        """
        block, card = divmod(self.index, len(choices))
        order = np.random.default_rng((*self._key, 1, crc32(name.encode()), block)).permutation(len(choices))
        return choices[int(order[card])]

    def one(self, choices: Sequence[Choice]) -> Choice:
        """Choose one uniformly."""
        return choices[int(self.random.integers(len(choices)))]

    def some(self, choices: Sequence[Choice], count: int) -> list[Choice]:
        """Choose ``count`` different ones in random order."""
        return [choices[int(index)] for index in self.random.permutation(len(choices))[:count]]

    def shuffled(self, choices: Sequence[Choice]) -> list[Choice]:
        """All of them in random order."""
        return self.some(choices, len(choices))

    def whole(self, low: int, high: int) -> int:
        """A whole number between ``low`` and ``high``, both included."""
        return int(self.random.integers(low, high + 1))
