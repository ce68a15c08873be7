"""One rank's part of a pack: equal runs of tokens, and what belongs to them."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, chain

import torch
from torch import Tensor

from keyekit.batch import IGNORED_LABEL, Batch, PackPart, SampleInfo, Segments, VisionBatch

__all__ = ["divide_pack"]


def divide_pack(batch: Batch, rank: int, ranks: int, merge: int = 2, whole_videos: bool = False) -> Batch:
    """The ``rank``-th of ``ranks`` equal runs of tokens of a pack; a pack that does not divide gets a longer tail.

    Labels, positions and samples are those of the run. Of the media a rank keeps those with a token in its run: an image at a
    border is encoded on both sides. Nothing is communicated, and on the host nothing is waited for.

    Args:
        batch: The whole pack, the same on all ranks.
        rank: Which run.
        ranks: Number of runs.
        merge: Side of the square of patches that becomes one token.
        whole_videos: Whether all frames of a video are kept if one is.

    Returns:
        The run, with :attr:`~keyekit.batch.Batch.part` set.

    Raises:
        ValueError: If the batch is a part already.
    """
    if batch.part is not None:
        raise ValueError("the batch is one rank's part of a pack already: divide whole packs")
    num_tokens = batch.samples[-1].stop if batch.samples else batch.segments.total
    batch = _with_longer_tail(batch, -batch.segments.total % ranks)
    count = batch.segments.total // ranks
    start, stop = rank * count, (rank + 1) * count
    run, device = slice(start, stop), batch.tokens.device
    labels = batch.labels[run]
    held = Segments.of(_overlaps(batch.segments.lengths, start, stop), device=device)
    vision, index, begun = _media_of(batch, start, count, merge, whole_videos)
    return replace(
        batch,
        tokens=batch.tokens[run],
        labels=labels,
        positions=batch.positions[:, run],
        segments=held,
        vision=vision,
        vision_index=index,
        samples=tuple(_clipped(batch.samples, start, stop)),
        num_targets=int((labels != IGNORED_LABEL).sum()),
        part=PackPart(
            segments=batch.segments,
            num_tokens=num_tokens,
            held=held,
            queries=_queries(batch.segments.lengths, start, stop, device),
            num_queries=min(max(num_tokens - start, 0), count),
            num_visual=int((index < count).sum()),
            begun_media=begun,
        ),
    )


def _with_longer_tail(batch: Batch, missing: int) -> Batch:
    """The pack with some more tokens of padding, as one more ignored segment."""
    if not missing:
        return batch
    return replace(
        batch,
        tokens=torch.cat([batch.tokens, batch.tokens.new_zeros(missing)]),
        labels=torch.cat([batch.labels, batch.labels.new_full((missing,), IGNORED_LABEL)]),
        positions=torch.cat([batch.positions, torch.arange(missing).to(batch.positions).expand(3, -1)], dim=1),
        segments=Segments.of([*batch.segments.lengths, missing], device=batch.tokens.device),
    )


def _overlaps(lengths: tuple[int, ...], start: int, stop: int) -> list[int]:
    """Tokens of each sequence that lie in the run."""
    ends = list(accumulate(lengths))
    return [max(min(end, stop) - max(end - length, start), 0) for end, length in zip(ends, lengths, strict=True)]


def _queries(lengths: tuple[int, ...], start: int, stop: int, device: torch.device) -> Segments:
    """The run's tokens as the last queries of the keys before them; keys that nobody here may see are segments of their own."""
    pairs, end = [], 0
    for length, queries in zip(lengths, _overlaps(lengths, start, stop), strict=True):
        end += length
        hidden = max(end - stop, 0) if queries else 0  # of a sequence that goes on behind the run
        pairs.append((queries, length - hidden))
        if hidden:
            pairs.append((0, hidden))
    return Segments.of([queries for queries, _ in pairs], [keys for _, keys in pairs], device)


def _clipped(samples: tuple[SampleInfo, ...], start: int, stop: int) -> list[SampleInfo]:
    """The samples with a token in the run, counted from its beginning."""
    return [
        replace(sample, start=max(sample.start, start) - start, stop=min(sample.stop, stop) - start)
        for sample in samples
        if sample.start < stop and sample.stop > start
    ]


def _media_of(
    batch: Batch, start: int, count: int, merge: int, whole_videos: bool
) -> tuple[VisionBatch | None, Tensor, int]:
    """Media with a token in the run, where their tokens go (``count``: to other runs), and how many begin before it."""
    vision = batch.vision
    if vision is None:
        return None, batch.vision_index, 0
    frames = vision.frames if whole_videos else (1,) * len(vision.grids)
    places = batch.vision_index - start
    places = torch.where((places >= 0) & (places < count), places, count)
    kept_places, kept_patches, kept_grids, kept_frames = [], [], [], []
    first_grid = first_patch = begun = 0
    for number in frames:
        grids = vision.grids[first_grid : first_grid + number]
        patches = sum(rows * columns for rows, columns in grids)
        tokens = slice(first_patch // merge**2, (first_patch + patches) // merge**2)
        if bool((places[tokens] < count).any()):
            begun += int(batch.vision_index[tokens.start]) < start
            kept_places.append(places[tokens])
            kept_patches.append(vision.patches[first_patch : first_patch + patches])
            kept_grids.append(grids)
            kept_frames.append(number)
        first_grid, first_patch = first_grid + number, first_patch + patches
    if not kept_grids:
        return None, places[:0], 0
    kept = VisionBatch(
        patches=torch.cat(kept_patches), grids=tuple(chain.from_iterable(kept_grids)), frames=tuple(kept_frames)
    )
    return kept, torch.cat(kept_places), begun
