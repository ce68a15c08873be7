"""The order in which a mixture draws samples: a function of seed, samples and steps, whose state is a few numbers."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from keyekit.data.mixture import Mixture

__all__ = ["Draw", "Draws"]


class Draw(NamedTuple):
    """One sample that was drawn.

    Args:
        source: Its source.
        index: Its number in the source.
    """

    source: str
    index: int


class Draws:
    """Draws samples from the sources of a mixture, each source in an order of its own that changes with every pass.

    Always the source is drawn from that has fallen behind most, so that at any time every source has had its portion but for a
    sample or two. Nothing depends on ranks, workers or the clock.

    Args:
        mixture: Sources and portions.
        lengths: For each source the tokens of its samples; those with none are not used.
        seed: Seed of the orders.

    Raises:
        ValueError: If a source has no sample that can be used.

    Example:
        >>> draws = Draws(Mixture(sources=["a", "b"], weights={"a": 2, "b": 1}), {"a": [5] * 8, "b": [5] * 8})
        >>> [draws.draw(step=0).source for _ in range(6)]
        ['a', 'b', 'a', 'a', 'b', 'a']
    """

    def __init__(self, mixture: Mixture, lengths: Mapping[str, Any], seed: int = 0) -> None:
        self.mixture = mixture
        self.seed = seed
        self.lengths = {name: np.asarray(lengths[name]) for name in mixture.names}
        self._usable = {name: self._chosen(name) for name in mixture.names}
        self._bounds = {name: self._bound(name) for name in mixture.names}
        self._natural = {name: self._held(name) for name in mixture.names}
        self._scale = 1.0 if mixture.share == "samples" else self._mean_length()
        self._drawn = dict.fromkeys(mixture.names, 0)
        self._credit = dict.fromkeys(mixture.names, 0.0)
        self._order = lru_cache(maxsize=len(mixture.names))(self._shuffled)
        self._portions = lru_cache(maxsize=2)(self._portions_of)

    @property
    def drawn(self) -> dict[str, int]:
        """Samples drawn of each source."""
        return dict(self._drawn)

    @property
    def epochs(self) -> dict[str, float]:
        """Passes over each source, the current one in part."""
        return {name: number / len(self._usable[name]) for name, number in self._drawn.items()}

    @property
    def used_up(self) -> bool:
        """Whether nothing is left."""
        return not self._left()

    def draw(self, step: int) -> Draw | None:
        """The next sample, or ``None`` if all sources are used up.

        Args:
            step: The optimizer step that decides the weights.
        """
        left = self._left()
        if not left:
            return None
        portions = self._portions(step, left)
        name = max(left, key=lambda name: (portions[name] > 0, self._credit[name] + portions[name] * self._scale))
        index = self._index(name, self._drawn[name])
        cost = 1.0 if self.mixture.share == "samples" else float(self.lengths[name][index])
        for other in left:
            self._credit[other] += portions[other] * cost
        self._credit[name] -= cost
        self._drawn[name] += 1
        return Draw(name, index)

    def state_dict(self) -> dict[str, Any]:
        """How many samples were drawn of each source, and by how much it is behind."""
        samples = {name: len(usable) for name, usable in self._usable.items()}
        return {"drawn": dict(self._drawn), "credit": dict(self._credit), "samples": samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: If the sources were others, or held other numbers of samples.
        """
        now = self.state_dict()["samples"]
        if dict(state["samples"]) != now:
            raise ValueError(
                f"the checkpoint was saved with {dict(state['samples'])} usable samples, now there are {now}: its position "
                "means nothing in other data; go on with the former sources, or begin a new run from the exported weights"
            )
        self._drawn = dict(state["drawn"])
        self._credit = dict(state["credit"])

    def _left(self) -> tuple[str, ...]:
        return tuple(name for name, number in self._drawn.items() if number < self._bounds[name])

    def _bound(self, name: str) -> float:
        """Draws after which a source is used up; a whole number, or infinite."""
        bound = self.mixture.passes(name) * len(self._usable[name])
        return bound if math.isinf(bound) else max(math.floor(bound), 1)

    def _portions_of(self, step: int, left: tuple[str, ...]) -> dict[str, float]:
        return self.mixture.portions(step, {name: self._natural[name] for name in left})

    def _index(self, name: str, number: int) -> int:
        usable = self._usable[name]
        epoch, place = divmod(number, len(usable))
        return int(usable[self._order(name, epoch)[place]])

    def _shuffled(self, name: str, epoch: int) -> np.ndarray:
        return self._random(name, 1 + epoch).permutation(len(self._usable[name]))

    def _chosen(self, name: str) -> np.ndarray:
        """Numbers of the samples that may be drawn."""
        usable = np.flatnonzero(self.lengths[name])
        if not len(usable):
            raise ValueError(f"none of the {len(self.lengths[name])} samples of the source {name!r} can be used")
        bound = self.mixture.max_samples.get(name, len(usable))
        if bound >= len(usable):
            return usable
        return np.sort(self._random(name, 0).permutation(usable)[:bound])

    def _random(self, name: str, stream: int) -> np.random.Generator:
        """Random numbers of a source: other sources in the mixture change nothing about them."""
        return np.random.default_rng((self.seed, zlib.crc32(name.encode()), stream))

    def _held(self, name: str) -> float:
        usable = self._usable[name]
        return float(len(usable) if self.mixture.share == "samples" else self.lengths[name][usable].sum())

    def _mean_length(self) -> float:
        return float(np.concatenate([self.lengths[name][usable] for name, usable in self._usable.items()]).mean())
