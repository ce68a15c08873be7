"""Mixtures: which sources a run learns from, and how much of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from keyekit.data.sources.base import Source
from keyekit.registry import closest

__all__ = ["Mixture", "Weight"]

Weight = float | dict[int, float]
"""A weight, or weights by optimizer step: linear between two steps, constant before the first and behind the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Several sources as one endless or bounded stream.

    Args:
        sources: Names of tasks of the world or paths of ``.jsonl`` files; or, by a name of your own, any of these or a source.
        weights: For each source its part of the mixture, in any unit. As ``{0: 1.0, 500: 0.0}`` it changes with the optimizer
            step: 1 at the beginning, nothing from step 500 on, evenly less in between. Without weights every source counts as
            much as it holds.
        share: What weights divide: ``samples``, or ``tokens``, where a source of long samples gets fewer of them.
        temperature: Weights are raised to the power of 1/temperature: 1 leaves them, above they become more alike.
        max_epochs: Passes over a source after which it is used up; one number for all, or for some by name; the others go on
            in their proportions, and when nothing is left the run ends. By default sources are never used up.
        max_samples: Samples that a source is cut down to, drawn by the seed, by name.

    Raises:
        ValueError: If a name is not among the sources, a weight is missing, or a number makes no sense.
    """

    sources: list[str] | dict[str, str | Source]
    weights: dict[str, Weight] | None = None
    share: Literal["samples", "tokens"] = "samples"
    temperature: float = 1.0
    max_epochs: float | dict[str, float] | None = None
    max_samples: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("a mixture needs sources: name tasks of the world, files or sources")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources={self.sources}: a source is named twice; give it a larger weight instead")
        if self.share not in ("samples", "tokens"):
            raise ValueError(f"share={self.share!r}: choose samples or tokens")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature={self.temperature}: give a number above 0")
        passes = self.max_epochs if isinstance(self.max_epochs, dict) else {}
        for argument, named in (
            ("weights", self.weights or {}),
            ("max_epochs", passes),
            ("max_samples", self.max_samples),
        ):
            self._check_names(argument, named)
        for name, weight in (self.weights or {}).items():
            _check_weight(name, weight)
        missing = [name for name in self.names if name not in (self.weights or dict.fromkeys(self.names))]
        if missing:
            raise ValueError(f"weights: {', '.join(missing)} has none; give every source one, or none at all")
        bounds = [*passes.values(), *([self.max_epochs] if isinstance(self.max_epochs, int | float) else [])]
        if any(not bound > 0 for bound in (*bounds, *self.max_samples.values())):
            raise ValueError("max_epochs and max_samples are above 0: leave out a source that is not to be used")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources, in order."""
        return tuple(self.sources)

    def source(self, name: str) -> str | Source:
        """The source of a name; a task or path where that is all there is."""
        return self.sources[name] if isinstance(self.sources, dict) else name

    def passes(self, name: str) -> float:
        """Passes after which a source is used up."""
        bound = self.max_epochs.get(name) if isinstance(self.max_epochs, dict) else self.max_epochs
        return math.inf if bound is None else bound

    def portions(self, step: int, natural: Mapping[str, float]) -> dict[str, float]:
        """What every source gets at a step, of 1 altogether.

        Args:
            step: The optimizer step.
            natural: What the sources that are not used up hold, in the unit of :attr:`share`; it stands for weights that are
                not given. A source that is not named gets nothing.

        Raises:
            ValueError: If nothing has a weight at this step.
        """
        given = natural if self.weights is None else self.weights
        weights = {name: _weight_at(given[name], step) if name in natural else 0.0 for name in self.names}
        largest = max(weights.values())
        if largest <= 0:
            left = ", ".join(natural) or "none"
            raise ValueError(
                f"at step {step} no source has a weight above 0 (not used up: {left}): nothing can be drawn"
            )
        # Relative to the largest first: a power of a very large or small number would be none.
        powers = {name: (weight / largest) ** (1 / self.temperature) for name, weight in weights.items()}
        total = sum(powers.values())
        return {name: power / total for name, power in powers.items()}

    def _check_names(self, argument: str, named: Mapping[str, object]) -> None:
        for name in named:
            if name not in self.names:
                raise ValueError(
                    f"{argument}: there is no source {name!r}{closest(name, list(self.names))}; "
                    f"the mixture has {', '.join(self.names)}"
                )


def _check_weight(name: str, weight: Weight) -> None:
    by_step = weight if isinstance(weight, dict) else {0: weight}
    if not by_step or any(not (math.isfinite(value) and value >= 0) for value in by_step.values()) or min(by_step) < 0:
        raise ValueError(f"weights: {name} has {weight}; give a number that is not negative, or such numbers by step")
    if not any(by_step.values()):
        raise ValueError(f"weights: {name} never has any; leave it out of the sources")


def _weight_at(weight: Weight, step: int) -> float:
    """The weight at a step, linear between the steps that are given."""
    if not isinstance(weight, dict):
        return float(weight)
    steps = sorted(weight)
    if step <= steps[0]:
        return float(weight[steps[0]])
    for first, second in pairwise(steps):
        if step <= second:
            part = (step - first) / (second - first)
            return weight[first] + part * (weight[second] - weight[first])
    return float(weight[steps[-1]])
