"""Keys and values of earlier tokens, kept per layer and per sequence while decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keyekit.batch import Segments

__all__ = ["SequenceCache"]


class SequenceCache:
    """Buffers that grow with the sequences they serve; one per generation call.

    A layer stores what it needs by name: ``key`` and ``value``, and ``index_key`` for a sparse attention. Buffers are
    allocated on first use for the final length, so decoding allocates nothing but the packed view of each step.

    Args:
        num_layers: Layers of the decoder.
        capacities: Most tokens each sequence will ever hold.
    """

    def __init__(self, num_layers: int, capacities: Sequence[int]) -> None:
        self.capacities = tuple(capacities)
        self.lengths = [0] * len(self.capacities)
        self._layers = [LayerBuffers(self) for _ in range(num_layers)]

    def layer(self, index: int) -> LayerBuffers:
        """The buffers of one layer."""
        return self._layers[index]

    def segments_for(self, new_lengths: Sequence[int], device: torch.device | str) -> Segments:
        """Segments of ``new_lengths`` queries whose keys include everything stored so far.

        Raises:
            ValueError: If a sequence would outgrow its capacity.
        """
        totals = [stored + new for stored, new in zip(self.lengths, new_lengths, strict=True)]
        if any(total > capacity for total, capacity in zip(totals, self.capacities, strict=True)):
            raise ValueError(f"sequences of {totals} tokens do not fit a cache made for {list(self.capacities)}")
        return Segments.of(new_lengths, key_lengths=totals, device=device)

    def advance(self, new_lengths: Sequence[int]) -> None:
        """Count the tokens of a forward pass as stored; call it once after all layers ran."""
        self.lengths = [stored + new for stored, new in zip(self.lengths, new_lengths, strict=True)]

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop all sequences but these, in this order."""
        self.capacities = tuple(self.capacities[sequence] for sequence in sequences)
        self.lengths = [self.lengths[sequence] for sequence in sequences]
        for layer in self._layers:
            layer.keep(sequences)


class LayerBuffers:
    """The named buffers of one layer, one tensor per sequence."""

    def __init__(self, cache: SequenceCache) -> None:
        self._cache = cache
        self._buffers: dict[str, list[Tensor]] = {}

    def extend(self, name: str, new: Tensor, segments: Segments) -> Tensor:
        """Append ``new [T, …]`` to the sequences and return all stored rows, packed ``[S, …]``."""
        if name not in self._buffers:
            self._buffers[name] = [new.new_empty(capacity, *new.shape[1:]) for capacity in self._cache.capacities]
        start, stored = 0, []
        for buffer, length, total in zip(self._buffers[name], segments.lengths, segments.key_lengths, strict=True):
            buffer[total - length : total] = new[start : start + length]
            stored.append(buffer[:total])
            start += length
        return stored[0] if len(stored) == 1 else torch.cat(stored)

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop the buffers of all other sequences."""
        for name, buffers in self._buffers.items():
            self._buffers[name] = [buffers[sequence] for sequence in sequences]
