"""Counting what batches hold and how long steps take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

from keyekit.batch import Batch, ContrastiveBatch

__all__ = ["StepMeter", "Work", "own_media", "work_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What some steps processed, and the time they took.

    Args:
        tokens: Tokens of samples; the padding of a pack is not counted.
        targets: Tokens that carry a loss; pairs in a contrastive batch.
        vision_tokens: Those of them that stand for pictures; 0 in a contrastive batch, whose text is apart.
        patches: Vision patches before merging.
        samples: Conversations; pairs in a contrastive batch.
        padded: Tokens with the padding of packs.
        steps: Batches.
        seconds: Wall time, from the end of the step before to the end of the step.
        waited: The part of it before the step began: waiting for the batch, and whatever runs between steps.
    """

    tokens: float = 0
    targets: float = 0
    vision_tokens: float = 0
    patches: float = 0
    samples: float = 0
    padded: float = 0
    steps: float = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work.of(first + second for first, second in zip(astuple(self), astuple(other), strict=True))

    def __sub__(self, other: Work) -> Work:
        return Work.of(first - second for first, second in zip(astuple(self), astuple(other), strict=True))

    @classmethod
    def of(cls, values: Any) -> Work:
        """Build from values in the order of the fields."""
        return cls(**dict(zip(cls.__slots__, values, strict=True)))

    def rates(self) -> dict[str, float]:
        """Rates per second, the share of time waited and the share of padding; empty if no time has passed."""
        if self.seconds <= 0:
            return {}
        found = {
            "tokens_per_second": self.tokens / self.seconds,
            "text_tokens_per_second": (self.tokens - self.vision_tokens) / self.seconds,
            "vision_tokens_per_second": self.vision_tokens / self.seconds,
            "targets_per_second": self.targets / self.seconds,
            "patches_per_second": self.patches / self.seconds,
            "samples_per_second": self.samples / self.seconds,
            "steps_per_second": self.steps / self.seconds,
            "data_wait": self.waited / self.seconds,
        }
        return found | ({"padding": 1 - self.tokens / self.padded} if self.padded else {})


def work_of(batch: Any) -> Work:
    """Count what a batch holds; a batch that is not one of keyekit's counts as a step alone.

    Reads host integers only, so nothing synchronises.
    """
    if isinstance(batch, ContrastiveBatch):
        tokens, pairs = batch.segments.total, len(batch.segments)
        patches = len(batch.vision.patches)
        return Work(tokens=tokens, targets=pairs, patches=patches, samples=pairs, padded=tokens, steps=1)
    if not isinstance(batch, Batch):
        return Work(steps=1)
    patches = 0 if batch.vision is None else len(batch.vision.patches)
    samples, visual = len(batch.samples), len(batch.vision_index)
    if batch.part is not None:  # what an earlier rank has begun is in its account
        samples -= sum(keys > queries for queries, keys in batch.part.own_queries[:1])
        visual = batch.part.num_visual
        patches = sum(frames * rows * columns for frames, rows, columns in own_media(batch))
    return Work(
        tokens=sum(sample.stop - sample.start for sample in batch.samples),
        targets=batch.num_targets,
        vision_tokens=visual,
        patches=patches,
        samples=samples,
        padded=batch.segments.total,
        steps=1,
    )


def own_media(batch: Batch) -> list[tuple[int, int, int]]:
    """``(frames, rows, columns)`` of every medium of a batch; of one rank's part of a pack, those that begin there."""
    if batch.vision is None:
        return []
    media, start = [], 0
    for frames in batch.vision.frames:
        media.append((frames, *batch.vision.grids[start]))
        start += frames
    return media if batch.part is None else media[batch.part.begun_media :]


class StepMeter:
    """Times steps and sums up the last of them.

    Host time is measured. On a device that runs behind the host, single steps are inexact; a window is exact to within the
    length of the device's queue, and no synchronisation is needed.

    Args:
        window: Steps to sum up.
        clock: Returns seconds.
    """

    def __init__(self, window: int, clock: Callable[[], float] = time.perf_counter) -> None:
        if window < 1:
            raise ValueError(f"window={window}: at least one step is needed to measure a rate")
        self._clock = clock
        self._steps: deque[Work] = deque(maxlen=window)
        self._ended = self._began = clock()
        self._paused: float | None = None
        self.recent = Work()
        """Sum over the window."""

    def begin_step(self) -> None:
        """The batch is there and its step begins."""
        self._began = self._clock()

    def end_step(self, batch: Any) -> Work:
        """The step is over.

        Args:
            batch: What it processed.

        Returns:
            Its work.
        """
        now = self._clock()
        counted = work_of(batch)
        step = counted + Work(seconds=now - self._ended, waited=max(self._began - self._ended, 0.0))
        self._ended = now
        if len(self._steps) == self._steps.maxlen:
            self.recent -= self._steps[0]
        self._steps.append(step)
        self.recent += step
        return step

    def pause(self) -> None:
        """Something that is no step begins, such as a validation; its time counts nowhere."""
        self._paused = self._clock()

    def resume(self) -> None:
        """It is over."""
        if self._paused is not None:
            self._ended += self._clock() - self._paused
            self._paused = None
