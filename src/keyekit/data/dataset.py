"""Encoded conversations with their pictures, as they are or with the eyes shut."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from typing import Literal

import numpy as np

from keyekit.data.cost import SampleCost, SampleSize
from keyekit.data.encode import EncodedSample, SampleEncoder
from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.long_samples import LongPolicy, fitted
from keyekit.data.packer import PackBudget
from keyekit.data.sample import Sample

__all__ = ["ConversationDataset", "Eyes"]

Eyes = Literal["open", "blank", "swapped"]
"""What samples see: their own pictures, grey ones, or those of another sample."""

_GREY = 128


class ConversationDataset:
    """Samples that can be read, encoded once; pictures come from the cache when a pack is made.

    Args:
        samples: Conversations.
        encoder: Encodes them.
        policy: What a sample that cannot be used does.
        max_tokens: Tokens that a pack holds, or a whole budget.
        with_answer: Whether answers are part of the sequences.
        cost: Measures encoded samples; tokens and patches alone by default.
        long_samples: What happens to a sample that no pack can hold.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        encoder: SampleEncoder,
        policy: ErrorPolicy,
        max_tokens: int | PackBudget,
        with_answer: bool = True,
        cost: SampleCost | None = None,
        long_samples: LongPolicy = "refuse",
    ) -> None:
        budget = max_tokens if isinstance(max_tokens, PackBudget) else PackBudget(tokens=max_tokens)
        self.encoder = encoder
        self.cost = cost or SampleCost(patch_size=encoder.cache.reader.geometry.patch_size)
        self._swaps: list[int | None] | None = None
        self.encoded: list[EncodedSample] = []
        for sample in samples:
            try:
                self._add(sample, budget, long_samples, with_answer)
            except BadData as error:
                policy.handle(error)
        if not self.encoded:
            raise ValueError(f"none of {len(samples)} samples can be used: {policy.counts}")

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def sizes(self) -> list[SampleSize]:
        """Measures of the samples."""
        return [self.cost.of(encoded) for encoded in self.encoded]

    def spread(self, count: int) -> ConversationDataset:
        """A dataset of at most ``count`` of these samples, evenly spread."""
        chosen = copy(self)
        chosen._swaps = None
        step = max(len(self) / max(count, 1), 1.0)
        chosen.encoded = [self.encoded[int(place * step)] for place in range(min(count, len(self)))]
        return chosen

    def members(self, index: int, eyes: Eyes = "open") -> list[tuple[EncodedSample, list[np.ndarray]]]:
        """What a pack holds of a sample: its sequences in order, each with its pictures.

        Args:
            index: Number of the sample.
            eyes: What it sees; see :meth:`pictures`.
        """
        return [(self.encoded[index], self.pictures(index, eyes))]

    def pictures(self, index: int, eyes: Eyes = "open") -> list[np.ndarray]:
        """Pictures of a sample: ``[frames, height, width, 3]`` uint8 for each run of frames of one size.

        Args:
            index: Number of the sample.
            eyes: ``open`` shows its own pictures, ``blank`` grey ones of the same size, ``swapped`` those of another sample
                of the same task with other media of the same sizes, whatever its answer, so that looking is worth chance (if
                there is none: blank).
        """
        if eyes == "swapped":
            other = self._others()[index]
            return self.pictures(other) if other is not None else self.pictures(index, "blank")
        if eyes == "blank":
            return [np.full((*shape, 3), _GREY, dtype=np.uint8) for shape in self.encoded[index].shapes]
        return self.encoder.pictures(self.encoded[index])

    def _add(self, sample: Sample, budget: PackBudget, long_samples: LongPolicy, with_answer: bool) -> None:
        """Encode a sample and keep it.

        Raises:
            BadData: If it cannot be used.
        """
        self.encoded.append(fitted(self.encoder.encode(sample, with_answer), self.cost, budget, long_samples))

    def _others(self) -> list[int | None]:
        """For each sample another one to take pictures from: half a group further, among samples that look alike in size."""
        if self._swaps is None:
            groups: dict[tuple, list[int]] = defaultdict(list)
            for index, encoded in enumerate(self.encoded):
                groups[encoded.sample.task, encoded.shapes].append(index)
            swaps: list[int | None] = [None] * len(self.encoded)
            for group in groups.values():
                for place, index in enumerate(group):
                    swaps[index] = self._partner(group, place)
            self._swaps = swaps
        return self._swaps

    def _partner(self, group: list[int], place: int) -> int | None:
        """From half a group further on, the first sample with other media."""
        for step in range(len(group)):
            candidate = group[(place + len(group) // 2 + step) % len(group)]
            if self.encoded[candidate].keys != self.encoded[group[place]].keys:
                return candidate
        return None
