"""The packed batch: the one layout in which samples travel from the loader to the loss.

Nothing here is changed after it was made. The classes are not frozen all the same, because Lightning's 16-bit precision
(``bf16-true``) rebuilds a batch field by field.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

__all__ = ["IGNORED_LABEL", "Batch", "ContrastiveBatch", "PackPart", "SampleInfo", "Segments", "VisionBatch"]

IGNORED_LABEL = -100
"""The label of a token that is not a target."""


def _offsets(lengths: Sequence[int], device: torch.device | str) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


@dataclass(slots=True, kw_only=True)
class Segments:
    """How a packed axis divides into pieces that must not see each other.

    Offsets live on the device for kernels, lengths on the host for loops, so that nothing synchronises. Queries and keys
    may differ in length: while decoding, each segment has one new query and all of its cached keys. The queries of a
    segment are then its *last* positions (causality is aligned to the end).

    Args:
        lengths: Number of queries of each segment, in packed order.
        key_lengths: Number of keys of each segment.
        offsets: ``[len(lengths) + 1]`` int32, cumulative query lengths beginning with 0.
        key_offsets: The same for keys.

    Example:
        >>> segments = Segments.of([3, 2])
        >>> segments.offsets.tolist(), segments.total, segments.maximum
        ([0, 3, 5], 5, 3)
    """

    lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    offsets: Tensor
    key_offsets: Tensor

    @classmethod
    def of(
        cls, lengths: Sequence[int], key_lengths: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> Segments:
        """Build segments from host lengths.

        Raises:
            ValueError: If a length is negative, the two lists differ in length, or a segment has more queries than keys.
        """
        lengths = tuple(int(length) for length in lengths)
        keys = lengths if key_lengths is None else tuple(int(length) for length in key_lengths)
        if len(keys) != len(lengths):
            raise ValueError(f"{len(lengths)} query lengths but {len(keys)} key lengths: every segment needs both")
        if any(length < 0 or length > key for length, key in zip(lengths, keys, strict=True)):
            raise ValueError(f"every segment needs 0 <= queries <= keys, got queries {lengths} and keys {keys}")
        offsets = _offsets(lengths, device)
        return cls(
            lengths=lengths,
            key_lengths=keys,
            offsets=offsets,
            key_offsets=offsets if key_lengths is None else _offsets(keys, device),
        )

    @property
    def total(self) -> int:
        """Number of queries in all segments."""
        return sum(self.lengths)

    @property
    def key_total(self) -> int:
        """Number of keys in all segments."""
        return sum(self.key_lengths)

    @property
    def maximum(self) -> int:
        """Length of the longest segment in queries."""
        return max(self.lengths, default=0)

    @property
    def key_maximum(self) -> int:
        """Length of the longest segment in keys."""
        return max(self.key_lengths, default=0)

    @property
    def is_square(self) -> bool:
        """Whether every segment has as many keys as queries (training and prefill)."""
        return self.lengths == self.key_lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Segments:
        """Copy the offsets to ``device``."""
        offsets = self.offsets.to(device, non_blocking=non_blocking)
        keys = offsets if self.key_offsets is self.offsets else self.key_offsets.to(device, non_blocking=non_blocking)
        return replace(self, offsets=offsets, key_offsets=keys)


@dataclass(slots=True, kw_only=True)
class VisionBatch:
    """The patches of every image and frame of a batch, packed.

    Args:
        patches: ``[P, C, patch, patch]`` normalised pixels, row-major inside each image or frame.
        grids: ``(rows, columns)`` in patches of each image or frame, in packed order. A frame of a video is a grid of its own.
        frames: Number of consecutive grids of each medium: 1 for an image, the frames for a video. Left empty, every grid
            is a medium of its own.

    Raises:
        ValueError: If the frames of all media do not add up to the grids.

    Example:
        >>> clip_and_image = VisionBatch(patches=torch.zeros(12, 3, 14, 14), grids=((2, 2),) * 3, frames=(2, 1))
        >>> clip_and_image.frames, replace(clip_and_image, frames=()).frames
        ((2, 1), (1, 1, 1))
    """

    patches: Tensor
    grids: tuple[tuple[int, int], ...]
    frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.frames:
            object.__setattr__(self, "frames", (1,) * len(self.grids))
        if sum(self.frames) != len(self.grids):
            raise ValueError(
                f"frames={self.frames} add up to {sum(self.frames)}, but there are {len(self.grids)} grids: "
                "give the number of grids of each medium"
            )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> VisionBatch:
        """Copy the patches to ``device``."""
        return replace(self, patches=self.patches.to(device, non_blocking=non_blocking))


@dataclass(slots=True, kw_only=True)
class SampleInfo:
    """What the host keeps about one sample of a pack, for metrics and previews.

    Args:
        id: Unique name of the sample.
        task: Task family such as ``"count"``; metrics are reported per task.
        start: First token of the sample inside the pack.
        stop: One past its last token.
        question: The last user text.
        answer: The expected answer, if one is known.
        meta: Whatever the source says about the sample; ``meta["options"]`` are the choices of a multiple-choice question.
        media: Paths of its media files.
        timestamps: Seconds of the frames the model sees.
    """

    id: str
    task: str
    start: int
    stop: int
    question: str = ""
    answer: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    media: tuple[str, ...] = ()
    timestamps: tuple[float, ...] = ()


@dataclass(slots=True, kw_only=True)
class PackPart:
    """What a rank that has some tokens of a pack knows of the whole pack (sequence parallelism).

    Args:
        segments: All sequences of the pack.
        num_tokens: Leading tokens of the pack that belong to samples.
        held: This rank's tokens of each of these sequences.
        queries: This rank's tokens as queries against the keys of the whole pack: as many keys as :attr:`segments` has.
        num_queries: This rank's leading tokens that belong to samples.
        num_visual: Those of this rank's tokens that stand for pictures.
        begun_media: Leading media of this rank whose first token is an earlier rank's; both encode them, the earlier one has
            them in its account.
    """

    segments: Segments
    num_tokens: int
    held: Segments
    queries: Segments
    num_queries: int
    num_visual: int
    begun_media: int

    @property
    def own_queries(self) -> tuple[tuple[int, int], ...]:
        """``(queries, keys)`` of every sample with a token here: how many it has, and how many the last of them sees."""
        pairs, left = [], self.num_queries
        for queries, keys in zip(self.queries.lengths, self.queries.key_lengths, strict=True):
            if left and queries:  # the tail stands behind all samples
                pairs.append((queries, keys))
                left -= queries
        return tuple(pairs)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackPart:
        """Copy the offsets to ``device``."""
        return replace(
            self,
            segments=self.segments.to(device, non_blocking=non_blocking),
            held=self.held.to(device, non_blocking=non_blocking),
            queries=self.queries.to(device, non_blocking=non_blocking),
        )


@dataclass(slots=True, kw_only=True)
class Batch:
    """A pack of samples, padded to its budget with an ignored tail segment.

    Args:
        tokens: ``[T]`` int64 token ids; image and video placeholders stand where vision features go.
        labels: ``[T]`` int64, already shifted: ``labels[i]`` is the token to predict at position ``i``, or
            :data:`IGNORED_LABEL`. The packer is the only place that shifts.
        positions: ``[3, T]`` int64 multimodal positions (time, height, width), each sample counted from 0.
        segments: One segment per sample, then one for the tail if there is one.
        vision: Patches of all media, or ``None`` when the pack holds text alone.
        vision_index: ``[M]`` int64, the packed positions of the placeholders in the order of the merged vision features.
        samples: One entry per sample, in packed order, without the tail.
        num_targets: Number of labels that are not ignored (host integer).
        part: Set where this is one rank's part of a pack: all else describes these tokens alone. A sequence without a token
            here is an empty segment; entries of :attr:`vision_index` behind the last token belong to other ranks.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    segments: Segments
    vision: VisionBatch | None
    vision_index: Tensor
    samples: tuple[SampleInfo, ...]
    num_targets: int
    part: PackPart | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy every tensor to ``device``; Lightning calls this."""
        return replace(
            self,
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            positions=self.positions.to(device, non_blocking=non_blocking),
            segments=self.segments.to(device, non_blocking=non_blocking),
            vision=None if self.vision is None else self.vision.to(device, non_blocking=non_blocking),
            vision_index=self.vision_index.to(device, non_blocking=non_blocking),
            part=None if self.part is None else self.part.to(device, non_blocking=non_blocking),
        )


@dataclass(slots=True, kw_only=True)
class ContrastiveBatch:
    """Images and captions that belong together, for image–text matching.

    Args:
        vision: One grid per image.
        tokens: ``[T]`` int64 packed caption tokens.
        segments: One segment per caption, in the order of the images.
        identities: ``[B]`` int64, equal where two captions have the same text, also on different ranks, so that they do not
            count as negatives of each other.
    """

    vision: VisionBatch
    tokens: Tensor
    segments: Segments
    identities: Tensor

    @property
    def matches(self) -> Tensor:
        """``[B, B]`` bool, true where image ``i`` fits caption ``j``."""
        return self.identities[:, None] == self.identities[None]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ContrastiveBatch:
        """Copy every tensor to ``device``; Lightning calls this."""
        return replace(
            self,
            vision=self.vision.to(device, non_blocking=non_blocking),
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            segments=self.segments.to(device, non_blocking=non_blocking),
            identities=self.identities.to(device, non_blocking=non_blocking),
        )
