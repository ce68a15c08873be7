"""Packing: whole samples side by side within budgets of tokens, patches and operations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from keyekit.batch import IGNORED_LABEL, Batch, Segments, VisionBatch
from keyekit.data.cost import SampleSize
from keyekit.data.encode import EncodedSample
from keyekit.data.packer import PackBudget, Packer
from keyekit.data.processing.patchify import normalise_patches, patchify

__all__ = ["collate", "fill", "plan_packs"]


def plan_packs(
    sizes: Sequence[int] | Sequence[SampleSize],
    budget: int | PackBudget,
    seed: int,
    buffer: int = 512,
    alone: bool = False,
) -> list[list[int]]:
    """Divide samples among packs: shuffled, then packed by a :class:`Packer`. No sample is cut.

    Args:
        sizes: Measures of each sample, or only its tokens.
        budget: What a pack may hold, or only its tokens.
        seed: Seed of the shuffle.
        buffer: Samples that wait for a pack at most.
        alone: Whether a sample that exceeds the budget becomes a pack of its own; otherwise it is an error.

    Returns:
        Sample numbers of each pack; every sample once.

    Raises:
        ValueError: If a sample exceeds the budget and may not stand alone.

    Example:
        >>> sorted(map(sorted, plan_packs([5, 3, 5, 2], budget=8, seed=0)))
        [[0, 3], [1, 2]]
    """
    packer = Packer(PackBudget(tokens=budget) if isinstance(budget, int) else budget, buffer, alone)
    packs: list[list[int]] = []
    for index in np.random.default_rng(seed).permutation(len(sizes)).tolist():
        size = sizes[index]
        pack = packer.add(index, size if isinstance(size, SampleSize) else SampleSize(tokens=size))
        if pack is not None:
            packs.append(pack)
    return [*packs, *packer.drain()]


def fill(packs: Sequence[Sequence[int]], sizes: Sequence[int] | Sequence[SampleSize], tokens: int) -> float:
    """Efficiency of packing: share of the places in all packs that hold a token of a sample.

    A pack that exceeds its budget, because a sample stands alone, counts as full.

    Args:
        packs: Sample numbers of each pack.
        sizes: Measures of each sample, or only its tokens.
        tokens: Tokens of a pack.

    Example:
        >>> fill([[0, 1], [2]], [5, 3, 4], tokens=8)
        0.75
    """
    lengths = [size.tokens if isinstance(size, SampleSize) else size for size in sizes]
    totals = [sum(lengths[index] for index in pack) for pack in packs]
    places = sum(max(total, tokens) for total in totals)
    return sum(totals) / places if places else 1.0


def collate(
    samples: Sequence[EncodedSample],
    pictures: Sequence[Sequence[np.ndarray]],
    budget: int | None,
    patch_size: int = 14,
    alone: bool = False,
) -> Batch:
    """Put samples side by side.

    Args:
        samples: The samples.
        pictures: For each sample the pictures of its media, ``[frames, height, width, 3]`` uint8.
        budget: Tokens to pad to with an ignored tail segment; ``None`` for no padding.
        patch_size: Side of a patch in pixels.
        alone: Whether one sample by itself may exceed the budget; it is not padded then.

    Raises:
        ValueError: If the samples exceed the budget.
    """
    lengths = [len(sample) for sample in samples]
    total = sum(lengths)
    tail = 0 if budget is None or (alone and len(samples) == 1 and total > budget) else budget - total
    if tail < 0:
        raise ValueError(f"{total} tokens do not fit a pack of {budget}")
    starts = np.cumsum([0, *lengths]).tolist()
    labels = torch.cat([*(sample.labels for sample in samples), torch.full((tail,), IGNORED_LABEL)])
    index = [
        torch.arange(start + span.start, start + span.stop)
        for sample, start in zip(samples, starts, strict=False)
        for span in sample.spans
    ]
    return Batch(
        tokens=torch.cat([*(sample.tokens for sample in samples), torch.zeros(tail, dtype=torch.int64)]),
        labels=labels,
        positions=torch.cat([*(sample.positions for sample in samples), torch.arange(tail).expand(3, -1)], dim=1),
        segments=Segments.of([*lengths, *([tail] if tail else [])]),
        vision=_vision(
            [picture for group in pictures for picture in group],
            tuple(shape.frames for sample in samples for shape in sample.media),
            patch_size,
        ),
        vision_index=torch.cat(index) if index else torch.zeros(0, dtype=torch.int64),
        samples=tuple(sample.info(start) for sample, start in zip(samples, starts, strict=False)),
        num_targets=int((labels != IGNORED_LABEL).sum()),
    )


def _vision(pictures: list[np.ndarray], frames: tuple[int, ...], patch_size: int) -> VisionBatch | None:
    """Patches of runs of frames of one size; ``frames`` of each medium, which may hold several runs."""
    if not pictures:
        return None
    grids = [
        (picture.shape[1] // patch_size, picture.shape[2] // patch_size)
        for picture in pictures
        for _ in range(len(picture))
    ]
    patches = torch.cat([patchify(picture, patch_size) for picture in pictures])
    return VisionBatch(patches=normalise_patches(patches), grids=tuple(grids), frames=frames)
