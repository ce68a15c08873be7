"""Packs of a mixture in their one order, whoever takes them: draws, packed over a bounded buffer."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import numpy as np

from keyekit.data.cost import SampleSize
from keyekit.data.draws import Draw, Draws
from keyekit.data.packer import PackBudget, Packer

__all__ = ["PackStream"]


class PackStream:
    """An endless or bounded stream of packs.

    The state is that of the draws and the samples that were drawn but are in no pack yet. So a run that goes on from a state,
    on however many ranks, sees every sample that was drawn in exactly one pack.

    Args:
        draws: The order of samples.
        sizes: For each source the measures of its samples, ``[samples, 3]``: tokens, patches and operations.
        budget: What a pack may hold.
        buffer: Samples that wait for a pack at most.
        alone: Whether a sample that exceeds the budget becomes a pack of its own.
    """

    def __init__(
        self,
        draws: Draws,
        sizes: Mapping[str, np.ndarray],
        budget: PackBudget,
        buffer: int = 512,
        alone: bool = False,
    ) -> None:
        self.draws = draws
        self.sizes = dict(sizes)
        self._packer_settings = (budget, buffer, alone)
        self._packer = Packer(*self._packer_settings)
        self._names = draws.mixture.names
        self._starts = [0, *accumulate(len(sizes[name]) for name in self._names)]

    @property
    def budget(self) -> PackBudget:
        """What a pack may hold."""
        return self._packer.budget

    @property
    def used_up(self) -> bool:
        """Whether there is no further pack."""
        return self.draws.used_up and not self._packer.waiting

    def next(self, step: int) -> list[Draw] | None:
        """The next pack, or ``None`` if there is none.

        Args:
            step: The optimizer step that decides the weights of what is drawn for it.
        """
        pack = None
        while pack is None:
            draw = self.draws.draw(step)
            if draw is None:
                pack = next(self._packer.drain(), None)
                break
            pack = self._packer.add(self._number(draw), self.size(draw))
        return None if pack is None else [self._draw(number) for number in pack]

    def state_dict(self) -> dict[str, Any]:
        """What was drawn, and what waits."""
        return {**self.draws.state_dict(), "waiting": [tuple(self._draw(number)) for number in self._packer.waiting]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: If the sources were others, or held other numbers of samples.
        """
        self.draws.load_state_dict(state)
        self._packer = Packer(*self._packer_settings)
        draws = [Draw(*waiting) for waiting in state["waiting"]]
        self._packer.restore([(self._number(draw), self.size(draw)) for draw in draws])

    def size(self, draw: Draw) -> SampleSize:
        """The measures of a sample."""
        return SampleSize.of(self.sizes[draw.source][draw.index])

    def _number(self, draw: Draw) -> int:
        return self._starts[self._names.index(draw.source)] + draw.index

    def _draw(self, number: int) -> Draw:
        place = bisect_right(self._starts, number) - 1
        return Draw(self._names[place], number - self._starts[place])
