"""What data consist of: tokens by source and modality, lengths, sizes and how well they pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from keyekit.batch import IGNORED_LABEL
from keyekit.data.balance import balance, imbalance
from keyekit.data.cost import SampleCost, SampleSize
from keyekit.data.encode import EncodedSample
from keyekit.data.packer import PackBudget
from keyekit.data.packing import fill, plan_packs

__all__ = ["Bar", "PackingStatistics", "SourceStatistics", "Statistics", "histogram"]


@dataclass(slots=True)
class SourceStatistics:
    """Sums of one source.

    Args:
        samples: Usable samples.
        tokens: Tokens by what they stand for: ``text``, ``image`` or ``video``.
        targets: Tokens that are learnt.
        media: Images and videos, as often as samples show them.
        frames: Frames of all videos.
        seconds: Seconds from the first to the last frame of all videos.
        flops: Operations of training on all samples once; 0 where the network is not known.
    """

    samples: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    targets: int = 0
    media: Counter[str] = field(default_factory=Counter)
    frames: int = 0
    seconds: float = 0.0
    flops: float = 0.0

    def __add__(self, other: SourceStatistics) -> SourceStatistics:
        return SourceStatistics(
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
            targets=self.targets + other.targets,
            media=self.media + other.media,
            frames=self.frames + other.frames,
            seconds=self.seconds + other.seconds,
            flops=self.flops + other.flops,
        )


class PackingStatistics(NamedTuple):
    """How samples pack.

    Args:
        packs: Packs of an epoch.
        fill: Share of their places that hold a token.
        samples_per_pack: On average.
        too_long: Samples that no pack can hold.
        dealt: Load of the busiest rank over the mean where samples are dealt in order; ``None`` without known operations.
        balanced: The same where they are balanced.
    """

    packs: int
    fill: float
    samples_per_pack: float
    too_long: int
    dealt: float | None
    balanced: float | None


class Statistics:
    """Collects samples.

    Args:
        cost: Measures samples.
        token_side: Side of the square of pixels that becomes one token.
    """

    def __init__(self, cost: SampleCost, token_side: int = 28) -> None:
        self.cost = cost
        self.token_side = token_side
        self.sources: dict[str, SourceStatistics] = {}
        self.sizes: list[SampleSize] = []
        self.resolutions: dict[str, Counter[tuple[int, int]]] = {"image": Counter(), "video": Counter()}
        self.video_frames: list[int] = []

    def add(self, source: str, encoded: EncodedSample) -> None:
        """Count a sample."""
        size = self.cost.of(encoded)
        self.sizes.append(size)
        found = self.sources.setdefault(source, SourceStatistics())
        found.samples += 1
        found.targets += int((encoded.labels != IGNORED_LABEL).sum())
        found.flops += size.flops
        seen = 0
        for item, shape in zip(encoded.sample.media, encoded.media, strict=True):
            tokens = sum(
                frames * (height // self.token_side) * (width // self.token_side)
                for frames, height, width in shape.runs
            )
            seen += tokens
            found.tokens[item.kind] += tokens
            found.media[item.kind] += 1
            self.resolutions[item.kind][shape.width, shape.height] += 1
            if item.kind == "video":
                found.frames += shape.frames
                found.seconds += shape.timestamps[-1] - shape.timestamps[0] if shape.timestamps else 0.0
                self.video_frames.append(shape.frames)
        found.tokens["text"] += len(encoded) - seen

    @property
    def total(self) -> SourceStatistics:
        """All sources together."""
        return sum(self.sources.values(), SourceStatistics())

    @property
    def lengths(self) -> list[int]:
        """Tokens of every sample."""
        return [size.tokens for size in self.sizes]

    def packing(self, budget: PackBudget, seed: int = 0, ranks: int = 8, step: int = 64) -> PackingStatistics:
        """How the samples would be packed, and how evenly ranks loaded.

        Args:
            budget: What a pack may hold.
            seed: Seed of the order.
            ranks: Ranks that share a global step.
            step: Samples of a global step.
        """
        fitting = [size for size in self.sizes if budget.excess(size) is None]
        packs = plan_packs(fitting, budget, seed)
        order = np.random.default_rng(seed).permutation([size.flops for size in fitting]).tolist()
        steps = [order[start : start + step] for start in range(0, len(order) - step + 1, step)]
        dealt = balanced = None
        if steps and self.total.flops:
            dealt = float(np.mean([imbalance(costs, [range(r, step, ranks) for r in range(ranks)]) for costs in steps]))
            balanced = float(np.mean([imbalance(costs, balance(costs, ranks)) for costs in steps]))
        return PackingStatistics(
            packs=len(packs),
            fill=fill(packs, fitting, budget.tokens),
            samples_per_pack=len(fitting) / len(packs) if packs else 0.0,
            too_long=len(self.sizes) - len(fitting),
            dealt=dealt,
            balanced=balanced,
        )


class Bar(NamedTuple):
    """A bar of a histogram.

    Args:
        low: Smallest number that counts here.
        high: Largest.
        count: How many there are.
    """

    low: int
    high: int
    count: int

    @property
    def label(self) -> str:
        """Its range in words."""
        return f"{self.low:,}" if self.low == self.high else f"{self.low:,}–{self.high:,}"


def histogram(numbers: Sequence[int], bars: int = 12) -> list[Bar]:
    """Bars of one width; where the largest number is much larger than most, every bar is wider than the one before.

    Args:
        numbers: Whole numbers, not negative.
        bars: Bars at most.

    Example:
        >>> [tuple(bar) for bar in histogram([1, 2, 2, 4], bars=2)]
        [(1, 2, 3), (3, 4, 1)]
    """
    if not numbers:
        return []
    low, high = min(numbers), max(numbers)
    wide = low > 0 and high > 16 * float(np.median(numbers))
    edges = np.geomspace(low, high + 1, bars + 1) if wide else np.linspace(low, high + 1, bars + 1)
    whole = np.unique(np.ceil(edges).astype(int))
    counts, whole = np.histogram(numbers, bins=whole)
    return [Bar(int(whole[n]), int(whole[n + 1]) - 1, int(count)) for n, count in enumerate(counts)]
