"""Packing: whole samples side by side in a fixed budget of tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch

from keyekit.batch import IGNORED_LABEL, Batch, Segments, VisionBatch
from keyekit.data.encode import EncodedSample
from keyekit.data.processing.patchify import normalise_patches, patchify

__all__ = ["collate", "plan_packs"]


def plan_packs(lengths: Sequence[int], budget: int, seed: int, open_packs: int = 32) -> list[list[int]]:
    """Divide samples among packs: shuffled, then each into the open pack that it fills best. No sample is cut.

    Args:
        lengths: Tokens of each sample.
        budget: Tokens of a pack.
        seed: Seed of the shuffle.
        open_packs: Packs considered at a time; the fullest is closed when there are more.

    Returns:
        Sample numbers of each pack; every sample once.

    Raises:
        ValueError: If a sample is longer than the budget.

    Example:
        >>> sorted(map(sorted, plan_packs([5, 3, 5, 2], budget=8, seed=0)))
        [[0, 1], [2, 3]]
    """
    if lengths and max(lengths) > budget:
        raise ValueError(f"a sample of {max(lengths)} tokens does not fit a pack of {budget}")
    order = np.random.default_rng(seed).permutation(len(lengths))
    finished: list[list[int]] = []
    spaces: list[int] = []  # ascending free tokens of the open packs, beside their samples
    packs: list[list[int]] = []
    for index in order.tolist():
        place = bisect_left(spaces, lengths[index])
        if place < len(spaces):
            space, pack = spaces.pop(place), packs.pop(place)
        else:
            space, pack = budget, []
        pack.append(index)
        space -= lengths[index]
        place = bisect_left(spaces, space)
        spaces.insert(place, space)
        packs.insert(place, pack)
        if len(packs) > open_packs:
            finished.append(packs.pop(0))
            spaces.pop(0)
    return finished + packs


def collate(
    samples: Sequence[EncodedSample], pictures: Sequence[Sequence[np.ndarray]], budget: int | None, patch_size: int = 14
) -> Batch:
    """Put samples side by side.

    Args:
        samples: The samples.
        pictures: For each sample the pictures of its media, ``[frames, height, width, 3]`` uint8.
        budget: Tokens to pad to with an ignored tail segment; ``None`` for no padding.
        patch_size: Side of a patch in pixels.

    Raises:
        ValueError: If the samples exceed the budget.
    """
    lengths = [len(sample) for sample in samples]
    total = sum(lengths)
    tail = 0 if budget is None else budget - total
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
