"""Means of scores, overall and by group, with how certain they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from keyekit.metrics.intervals import mean_interval

__all__ = ["OVERALL", "Estimate", "GroupedMeans"]

OVERALL = "overall"
"""Name of the group that everything belongs to."""


class Estimate(NamedTuple):
    """A mean in percent.

    Args:
        value: The mean.
        low: Lower end of its interval; ``None`` where nothing can be said.
        high: Upper end of its interval.
        count: How many scores it is the mean of.
        chance: What guessing would give; ``None`` where that is not known for all of them.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    chance: float | None = None


class GroupedMeans(torchmetrics.Metric):
    """Mean score of everything and of each group, in percent, with intervals, correct under several ranks.

    Args:
        groups: Names of all groups that scores may belong to, in the order of the report.
        confidence: Probability that an interval is to cover the true mean with.
        draws: Resampled means of a bootstrap.
        seed: Seed of the bootstrap.

    Example:
        >>> means = GroupedMeans(["short", "long"])
        >>> means.update([1.0, 0.0], units=["a", "b"], groups=[["short"], ["long"]])
        >>> means.compute()["short"].value
        100.0
    """

    values: list[Tensor]
    units: list[Tensor]
    members: list[Tensor]
    chances: list[Tensor]

    full_state_update = False

    def __init__(self, groups: Sequence[str] = (), confidence: float = 0.95, draws: int = 2000, seed: int = 0) -> None:
        super().__init__()
        if not 0 < confidence < 1 or draws < 1:
            raise ValueError(f"need 0 < confidence < 1 and draws >= 1, got {confidence} and {draws}")
        if len(set(groups)) != len(groups) or OVERALL in groups:
            raise ValueError(f"groups must be distinct and none called {OVERALL!r}, got {', '.join(groups)}")
        self.groups = tuple(groups)
        self.confidence = confidence
        self.draws = draws
        self.seed = seed
        for name in ("values", "units", "members", "chances"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        values: Sequence[float],
        units: Sequence[str],
        groups: Sequence[Collection[str]] | None = None,
        chances: Sequence[float | None] | None = None,
    ) -> None:
        """Add scores; a rank without any has to add none, so that all take part when ranks are brought together.

        Args:
            values: Between 0 and 1.
            units: What each score belongs to, such as its video: scores of one unit are not independent.
            groups: Groups of each score; none by default.
            chances: What guessing would score, ``None`` where that is not known.

        Raises:
            ValueError: If a score is outside 0 to 1, a group was not announced, or the lengths differ.
        """
        groups = [()] * len(values) if groups is None else groups
        chances = [None] * len(values) if chances is None else chances
        if not len(values) == len(units) == len(groups) == len(chances):
            raise ValueError(f"{len(values)} scores, {len(units)} units, {len(groups)} groups, {len(chances)} chances")
        wrong = [value for value in values if not 0 <= value <= 1]
        if wrong:
            raise ValueError(f"scores lie between 0 and 1, got {wrong[0]}")
        unknown = sorted({name for names in groups for name in names} - set(self.groups))
        if unknown:
            raise ValueError(f"groups {', '.join(unknown)} were not announced; there are {', '.join(self.groups)}")
        members = torch.tensor([[name in names for name in self.groups] for names in groups], dtype=torch.bool)
        guesses = [math.nan if chance is None else chance for chance in chances]
        self.values.append(torch.tensor(values, dtype=torch.float64, device=self.device))
        self.units.append(torch.tensor([_number(unit) for unit in units], dtype=torch.int64, device=self.device))
        self.members.append(members.reshape(len(values), len(self.groups)).to(self.device))
        self.chances.append(torch.tensor(guesses, dtype=torch.float64, device=self.device))

    def compute(self) -> dict[str, Estimate]:
        """The estimate of :data:`OVERALL` and of every group with scores; empty without scores."""
        if len(self.values) == 0:  # lists of tensors, or one tensor each where ranks were brought together
            return {}
        values, units = dim_zero_cat(self.values).cpu(), dim_zero_cat(self.units).cpu()
        members, chances = dim_zero_cat(self.members).cpu(), dim_zero_cat(self.chances).cpu()
        rows = {OVERALL: torch.ones(len(values), dtype=torch.bool)}
        rows |= {name: members[:, column] for column, name in enumerate(self.groups)}
        return {name: self._estimate(values[row], units[row], chances[row]) for name, row in rows.items() if row.any()}

    def _estimate(self, values: Tensor, units: Tensor, chances: Tensor) -> Estimate:
        interval = mean_interval(values, units, self.confidence, self.draws, self.seed)
        low, high = (None, None) if interval is None else (100 * end for end in interval)
        chance = 100 * chances.mean().item()
        return Estimate(
            value=100 * values.mean().item(),
            low=low,
            high=high,
            count=len(values),
            chance=None if math.isnan(chance) else chance,
        )


def _number(unit: str) -> int:
    """A number for a name, the same in every process."""
    return int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "big", signed=True)
