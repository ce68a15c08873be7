"""What a sample costs before it is run: tokens, patches and operations, the measures by which packs and ranks are filled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from keyekit.batch import IGNORED_LABEL
from keyekit.models.flops import training_flops
from keyekit.models.presets import preset
from keyekit.models.sizes import NetworkSizes
from keyekit.models.vision_language import VisionLanguageModel

if TYPE_CHECKING:
    from keyekit.data.encode import EncodedSample

__all__ = ["SampleCost", "SampleSize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSize:
    """The measures of one sample.

    Args:
        tokens: Tokens of the decoder, vision tokens included.
        patches: Patches of the vision tower.
        flops: Operations of forward and backward; 0 where the network is not known.
    """

    tokens: int
    patches: int = 0
    flops: float = 0.0

    @property
    def measures(self) -> tuple[float, float, float]:
        """Tokens, patches and operations."""
        return self.tokens, self.patches, self.flops

    @classmethod
    def of(cls, measures: np.ndarray) -> SampleSize:
        """From ``[3]``: tokens, patches and operations."""
        tokens, patches, flops = measures.tolist()
        return cls(tokens=int(tokens), patches=int(patches), flops=flops)

    def __add__(self, other: SampleSize) -> SampleSize:
        return SampleSize(
            tokens=self.tokens + other.tokens, patches=self.patches + other.patches, flops=self.flops + other.flops
        )


class SampleCost:
    """Measures samples for a network.

    Operations are those of :func:`~keyekit.models.flops.training_flops`: matrices linear in tokens and patches, vision
    attention quadratic in each segment, decoder attention over the pairs that are causal or selected. The estimate that the
    reports balance by (Keye-VL 8B sheet 6) is the same sum without the small terms.

    Args:
        sizes: The network; ``None`` measures tokens and patches alone.
        patch_size: Side of a patch in pixels.

    Example:
        >>> cost = SampleCost.of_preset("keye_vl_8b_tiny")
        >>> size = cost.size(100, grids=[(4, 8, 8)])
        >>> size.tokens, size.patches, size.flops > cost.size(100).flops
        (100, 256, True)
    """

    def __init__(self, sizes: NetworkSizes | None = None, patch_size: int = 14) -> None:
        self.sizes = sizes
        self.patch_size = patch_size
        self._known: dict[tuple[object, ...], SampleSize] = {}  # many samples are alike

    @classmethod
    def of_network(cls, network: VisionLanguageModel, patch_size: int = 14) -> SampleCost:
        """Measures for a network that exists, on any device."""
        return cls(NetworkSizes.of(network), patch_size)

    @classmethod
    def of_preset(cls, name: str, patch_size: int = 14) -> SampleCost:
        """Measures for a released model or its twin; nothing is allocated.

        Raises:
            ValueError: If there is no preset of that name.
        """
        with torch.device("meta"):
            return cls.of_network(preset(name).build(), patch_size)

    def size(self, tokens: int, grids: Sequence[tuple[int, int, int]] = (), targets: int | None = None) -> SampleSize:
        """Measure a sample that is told by numbers.

        Args:
            tokens: Tokens, vision tokens included.
            grids: ``(frames, rows, columns)`` in patches of each medium.
            targets: Positions with a label; all by default.
        """
        key = (tokens, tuple(grids), targets)
        if key not in self._known:
            self._known[key] = self._measure(tokens, tuple(grids), targets)
        return self._known[key]

    def of(self, sample: EncodedSample) -> SampleSize:
        """Measure an encoded sample."""
        side = self.patch_size
        grids = [(frames, height // side, width // side) for frames, height, width in sample.shapes]
        return self.size(len(sample), grids, int((sample.labels != IGNORED_LABEL).sum()))

    def _measure(self, tokens: int, grids: tuple[tuple[int, int, int], ...], targets: int | None) -> SampleSize:
        flops = 0.0 if self.sizes is None else training_flops(self.sizes, [tokens], grids, targets=targets).total
        patches = sum(frames * rows * columns for frames, rows, columns in grids)
        return SampleSize(tokens=tokens, patches=patches, flops=flops)
