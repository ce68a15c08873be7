"""The file that holds one decoded medium: sizes and times, then pixels. Imports no torch: decoding processes stay light.

A file is numbers of eight bytes (how many follow; those of the head), then pixels. NumPy's own format would cost more time than
the pixels of a small clip. Files appear by renaming, so that a reader sees whole ones alone, and a file whose pixels were
dropped still says how many tokens the medium becomes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keyekit.data.media import Frames

__all__ = ["MediaShape", "drop_pixels", "has_pixels", "read_frames", "read_shape", "shape_of", "write_frames"]

_FIXED = 6  # numbers of a head before the times
_MOST_NUMBERS = 2**24


class MediaShape(NamedTuple):
    """What decides how many tokens a medium becomes.

    Args:
        frames: Number of frames; 1 for an image.
        height: Height of a frame in pixels.
        width: Width of a frame in pixels.
        timestamps: Seconds of the frames; empty for an image.
        fps: Frames per second that the frames amount to.
        fast: For each frame whether it is a small one; empty if none is.
        fast_height: Height of a small frame; 0 if there is none.
        fast_width: Width of a small frame.
    """

    frames: int
    height: int
    width: int
    timestamps: tuple[float, ...]
    fps: float
    fast: tuple[bool, ...] = ()
    fast_height: int = 0
    fast_width: int = 0

    @property
    def runs(self) -> tuple[tuple[int, int, int], ...]:
        """``(frames, height, width)`` of each run of frames of one size, in order."""
        if not self.fast:
            return ((self.frames, self.height, self.width),)
        sizes = {False: (self.height, self.width), True: (self.fast_height, self.fast_width)}
        return tuple((len(list(run)), *sizes[is_fast]) for is_fast, run in groupby(self.fast))

    @property
    def num_bytes(self) -> int:
        """Size of the pixels."""
        return sum(frames * height * width * 3 for frames, height, width in self.runs)


def write_frames(path: Path, frames: Frames) -> int:
    """Write a medium; the file is there when it is whole. Returns its bytes.

    Raises:
        OSError: If it cannot be written, such as for want of space; nothing is left behind.
    """
    return _replace(path, _head(frames), frames.runs)


def drop_pixels(path: Path) -> None:
    """Keep sizes and times of a stored medium alone."""
    raw = np.fromfile(path, dtype=np.float64, count=1 + _count(path))
    _replace(path, raw[1:].tolist(), ())


def read_shape(path: Path) -> MediaShape:
    """Sizes and times of a stored medium.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is no stored medium.
    """
    numbers = _count(path)
    return _parse(np.fromfile(path, dtype=np.float64, count=1 + numbers)[1:], path)


def has_pixels(path: Path) -> bool:
    """Whether a stored medium is there, whole and with its pixels, by the size of its file."""
    try:
        return path.stat().st_size == 8 * (1 + _count(path)) + read_shape(path).num_bytes
    except (FileNotFoundError, ValueError):
        return False


def shape_of(frames: Frames) -> MediaShape:
    """Sizes and times of a decoded medium."""
    return _parse(np.array(_head(frames), dtype=np.float64), Path("memory"))


def read_frames(path: Path) -> Frames | None:
    """A stored medium, or ``None`` if its pixels were dropped.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is no stored medium, or cut.
    """
    raw = np.fromfile(path, dtype=np.uint8)
    start = 8 * (1 + _numbers(raw[:8].view(np.float64) if len(raw) >= 8 else raw[:0], path))
    if start > len(raw):
        raise ValueError(f"{path} is no stored medium")
    shape = _parse(raw[8:start].view(np.float64), path)
    if len(raw) == start:
        return None
    if len(raw) != start + shape.num_bytes:
        raise ValueError(f"{path} has {len(raw)} bytes instead of {start + shape.num_bytes}")
    runs = []
    for frames, height, width in shape.runs:
        stop = start + frames * height * width * 3
        runs.append(raw[start:stop].reshape(frames, height, width, 3))
        start = stop
    return Frames(runs=tuple(runs), timestamps=shape.timestamps, fps=shape.fps, fast=shape.fast)


def _replace(path: Path, head: list[float], runs: Sequence[np.ndarray]) -> int:
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.array([len(head), *head], dtype=np.float64).tofile(file)
            for run in runs:
                np.ascontiguousarray(run).tofile(file)
            size = file.tell()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return size


def _head(frames: Frames) -> list[float]:
    """Rate, frames, two sizes, seconds of every frame, which ones are fast."""
    firsts = np.cumsum([0, *(len(run) for run in frames.runs)])[:-1]
    sizes = {
        bool(frames.fast) and frames.fast[first]: run.shape[1:3] for first, run in zip(firsts, frames.runs, strict=True)
    }
    fast_size = sizes.get(True, (0, 0))
    count = sum(len(run) for run in frames.runs)
    slow_size = sizes.get(False, (0, 0))
    return [frames.fps, count, *slow_size, *fast_size, *frames.timestamps, *frames.fast]


def _count(path: Path) -> int:
    """Numbers of a file's head."""
    return _numbers(np.fromfile(path, dtype=np.float64, count=1), path)


def _numbers(first: np.ndarray, path: Path) -> int:
    if not len(first) or not _FIXED <= first[0] <= _MOST_NUMBERS:  # true of NaN, too
        raise ValueError(f"{path} is no stored medium")
    return int(first[0])


def _parse(head: np.ndarray, path: Path) -> MediaShape:
    numbers = len(head)
    if numbers < _FIXED or not np.isfinite(head).all():
        raise ValueError(f"{path} is no stored medium")
    frames, height, width, fast_height, fast_width = head[1:_FIXED].astype(int).tolist()
    flags = frames if fast_height else 0
    times, fast = head[_FIXED : numbers - flags], head[numbers - flags :]
    return MediaShape(
        frames=frames,
        height=height,
        width=width,
        timestamps=tuple(times.tolist()),
        fps=float(head[0]),
        fast=tuple(fast.astype(bool).tolist()),
        fast_height=fast_height,
        fast_width=fast_width,
    )
