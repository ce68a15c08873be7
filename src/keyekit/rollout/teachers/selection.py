"""Some samples of a pack as a pack of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch

from keyekit.batch import IGNORED_LABEL, Batch, Segments, VisionBatch

__all__ = ["SampleVision", "select_samples", "vision_of_samples"]


class SampleVision(NamedTuple):
    """Where the pictures of one sample are in its pack.

    Args:
        placeholders: First and last entry (excluded) of the batch's ``vision_index``.
        grids: The same of the vision batch's ``grids``.
        media: The same of its ``frames``.
    """

    placeholders: tuple[int, int]
    grids: tuple[int, int]
    media: tuple[int, int]


def vision_of_samples(batch: Batch, merge: int | None = None) -> list[SampleVision]:
    """Where the pictures of each sample are.

    Args:
        batch: A whole pack.
        merge: Side in patches of what becomes one token; by default what the pack as a whole says.

    Raises:
        ValueError: If pictures and placeholders do not add up, medium by medium.
    """
    index = batch.vision_index.tolist()
    vision = batch.vision
    if vision is None:
        if index:
            raise ValueError(f"{len(index)} placeholders, but no picture")
        return [SampleVision((0, 0), (0, 0), (0, 0))] * len(batch.samples)
    area = merge * merge if merge is not None else sum(r * c for r, c in vision.grids) // max(len(index), 1)
    sizes = [rows * columns // max(area, 1) for rows, columns in vision.grids]
    ends = [0, *accumulate(vision.frames)]
    media = [(first, last, sum(sizes[first:last])) for first, last in pairwise(ends)]
    found, place, medium = [], 0, 0
    for sample in batch.samples:
        first, begun = place, medium
        while place < len(index) and index[place] < sample.stop:
            if medium == len(media):
                raise ValueError(f"{sample.id}: there are placeholders without a picture")
            place += media[medium][2]
            medium += 1
        if place > first and not (sample.start <= index[first] and index[place - 1] < sample.stop):
            raise ValueError(
                f"{sample.id}: its pictures make {place - first} tokens, its placeholders are not as many: student and teacher "
                "merge patches differently, or resize pictures to other sizes"
            )
        grids = (ends[begun], ends[medium])
        found.append(SampleVision((first, place), grids, (begun, medium)))
    if place != len(index) or medium != len(media):
        raise ValueError(f"{len(media) - medium} pictures and {len(index) - place} placeholders belong to no sample")
    return found


def select_samples(batch: Batch, chosen: Sequence[int]) -> Batch:
    """A pack of some samples, in the order that is given, without padding.

    Args:
        batch: A whole pack; a subclass becomes a plain :class:`~keyekit.batch.Batch`.
        chosen: Numbers of samples.
    """
    parts = vision_of_samples(batch)
    tokens = torch.cat([*_ranges(batch, chosen)]) if chosen else batch.tokens.new_zeros(0)
    lengths = [batch.samples[number].stop - batch.samples[number].start for number in chosen]
    starts = [0, *accumulate(lengths)]
    labels = batch.labels[tokens]
    samples = tuple(
        replace(batch.samples[number], start=start, stop=start + length)
        for number, start, length in zip(chosen, starts, lengths, strict=False)
    )
    index = [
        batch.vision_index[slice(*parts[number].placeholders)] - batch.samples[number].start + start
        for number, start in zip(chosen, starts, strict=False)
    ]
    return Batch(
        tokens=batch.tokens[tokens],
        labels=labels,
        positions=batch.positions[:, tokens],
        segments=Segments.of(lengths, device=batch.tokens.device),
        vision=_pictures(batch.vision, [parts[number] for number in chosen]),
        vision_index=torch.cat(index) if index else batch.vision_index[:0],
        samples=samples,
        num_targets=int((labels != IGNORED_LABEL).sum()),
    )


def _ranges(batch: Batch, chosen: Sequence[int]) -> Iterator[torch.Tensor]:
    for number in chosen:
        sample = batch.samples[number]
        yield torch.arange(sample.start, sample.stop, device=batch.tokens.device)


def _pictures(vision: VisionBatch | None, parts: Sequence[SampleVision]) -> VisionBatch | None:
    if vision is None or all(part.grids[0] == part.grids[1] for part in parts):
        return None
    ends = [0, *accumulate(rows * columns for rows, columns in vision.grids)]
    return VisionBatch(
        patches=torch.cat([vision.patches[ends[part.grids[0]] : ends[part.grids[1]]] for part in parts]),
        grids=tuple(grid for part in parts for grid in vision.grids[slice(*part.grids)]),
        frames=tuple(count for part in parts for count in vision.frames[slice(*part.media)]),
    )
