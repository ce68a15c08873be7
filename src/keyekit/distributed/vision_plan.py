"""Which rank encodes which image, by what images cost, and what a step gains by that."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from keyekit.models.flops import training_flops
from keyekit.models.sizes import NetworkSizes

__all__ = ["BalanceReport", "Grids", "RankWork", "VisionCost", "balance_report", "patches_of", "plan_vision"]

Grids = tuple[tuple[int, int], ...]
"""``(rows, columns)`` in patches of an image, or of the frames of a video that are encoded together."""

_FLOPS_PER_SECOND = 4e14  # ours: an H100 at 40 % of its dense bfloat16 peak
_BYTES_PER_SECOND = 5e10  # ours: 400 Gb/s per GPU between machines
_BYTES_PER_VALUE = 2  # bfloat16


def patches_of(image: Grids) -> int:
    """Patches of an image or video."""
    return sum(rows * columns for rows, columns in image)


class VisionCost:
    """Operations of tower and projector for an image, forward and backward, as :class:`~keyekit.data.cost.SampleCost` counts.

    Matrices are linear in the patches, attention is quadratic in each segment.

    Args:
        sizes: The network.
    """

    def __init__(self, sizes: NetworkSizes) -> None:
        self.sizes = sizes
        self._known: dict[Grids, float] = {}  # frames are alike

    def __call__(self, image: Grids) -> float:
        """Operations for one image, or for frames that are encoded together."""
        if image not in self._known:
            video = [(len(image), *image[0])] if len(set(image)) == 1 else list(image)
            self._known[image] = training_flops(self.sizes, [], video).vision
        return self._known[image]


def plan_vision(costs: Sequence[Sequence[float]]) -> list[list[int]]:
    """The rank that encodes each image: at home as long as that rank keeps within the mean load, else the least loaded.

    Largest first, as the reports balance (Keye-VL 8B sheet 6), but without needless journeys: where ranks are loaded alike
    nothing travels. Every rank computes the same plan.

    Args:
        costs: Cost of each of the images of each rank.

    Returns:
        A rank for each of them.

    Example:
        >>> plan_vision([[4.0, 2.0, 2.0], [], [1.0]])
        [[0, 1, 2], [], [2]]
    """
    mean = sum(map(sum, costs)) / max(len(costs), 1)
    loads = [0.0] * len(costs)
    least = [
        (0.0, rank) for rank in range(len(costs))
    ]  # a heap; entries that are no rank's load any more are passed over
    plan = [[home] * len(own) for home, own in enumerate(costs)]
    images = sorted((-cost, home, index) for home, own in enumerate(costs) for index, cost in enumerate(own))
    for negative, home, index in images:
        while least[0][0] != loads[least[0][1]]:
            heapq.heappop(least)
        stays = loads[home] - negative <= mean or loads[home] == least[0][0]
        rank = home if stays else least[0][1]
        plan[home][index] = rank
        loads[rank] -= negative
        heapq.heappush(least, (loads[rank], rank))
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class RankWork:
    """The pack of one rank.

    Args:
        lengths: Tokens of each sample.
        images: Each image, or each of what is encoded together.
    """

    lengths: tuple[int, ...]
    images: tuple[Grids, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceReport:
    """Modelled seconds of one step, and what balancing moves.

    Args:
        alone: Every rank encodes its own images; the step takes as long as the busiest rank.
        balanced: Images are shared: the busiest tower, then the exchange, then the busiest decoder.
        exchange: The part of it in which patches, features and gradients travel.
        moved: Share of the patches that leave their rank.
    """

    alone: float
    balanced: float
    exchange: float
    moved: float

    @property
    def ratio(self) -> float:
        """Balanced over alone."""
        return self.balanced / self.alone


def balance_report(
    sizes: NetworkSizes,
    work: Sequence[RankWork],
    flops_per_second: float = _FLOPS_PER_SECOND,
    bytes_per_second: float = _BYTES_PER_SECOND,
) -> BalanceReport:
    """What balancing the vision towers brings for a step, by the cost model alone.

    Args:
        sizes: The network.
        work: The pack of each rank.
        flops_per_second: What a device computes.
        bytes_per_second: What a device sends, and receives at the same time.
    """
    cost = VisionCost(sizes)
    costs = [[cost(image) for image in pack.images] for pack in work]
    plan = plan_vision(costs)
    decoder = [_decoder_flops(sizes, pack) for pack in work]
    shared = [0.0] * len(work)
    sent, received = [0] * len(work), [0] * len(work)
    for home, (pack, ranks) in enumerate(zip(work, plan, strict=True)):
        for image, rank, flops in zip(pack.images, ranks, costs[home], strict=True):
            shared[rank] += flops
            if rank != home:
                sent[home] += patches_of(image)
                received[rank] += patches_of(image)
    alone = max(sum(own) + rest for own, rest in zip(costs, decoder, strict=True))
    exchange = max(chain(sent, received)) * _bytes_per_patch(sizes) / bytes_per_second
    return BalanceReport(
        alone=alone / flops_per_second,
        balanced=(max(shared) + max(decoder)) / flops_per_second + exchange,
        exchange=exchange,
        moved=sum(sent) / max(sum(patches_of(image) for pack in work for image in pack.images), 1),
    )


def _decoder_flops(sizes: NetworkSizes, pack: RankWork) -> float:
    return training_flops(sizes, pack.lengths).total


def _bytes_per_patch(sizes: NetworkSizes) -> float:
    """The patch there, its share of a feature back, and of that feature's gradient there again."""
    values = sizes.vision.patch_weights / sizes.vision.dim + 2 * sizes.dim / sizes.merge**2
    return values * _BYTES_PER_VALUE
