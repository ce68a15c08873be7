"""Decoded and resized media, kept on disk: every file is decoded once. Imports no torch: decoding processes stay light."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keyekit.data.errors import BadData
from keyekit.data.media import Frames
from keyekit.data.processes import run_in_processes
from keyekit.data.reader import MediaReader
from keyekit.data.sample import ContentItem

__all__ = ["MediaCache", "MediaShape"]

_WORTH_PROCESSES = 64
"""Fewest media for which processes are started."""


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


class MediaCache:
    """One file per medium in a folder; safe for several processes, since files appear by renaming.

    Args:
        folder: Where decoded media are kept.
        reader: How media are read.
    """

    def __init__(self, folder: Path | str, reader: MediaReader) -> None:
        self.folder = Path(folder)
        self.reader = reader
        self.folder.mkdir(parents=True, exist_ok=True)

    def load(self, item: ContentItem, key: str | None = None) -> Frames:
        """Return a medium, decoding it first if it is not there.

        Raises:
            BadData: If it cannot be read.
        """
        raw = np.fromfile(self._stored(item, key or self.reader.key(item)), dtype=np.uint8)
        shape, start = _read_head(raw)
        runs = []
        for frames, height, width in shape.runs:
            stop = start + frames * height * width * 3
            runs.append(raw[start:stop].reshape(frames, height, width, 3))
            start = stop
        return Frames(runs=tuple(runs), timestamps=shape.timestamps, fps=shape.fps, fast=shape.fast)

    def describe(self, item: ContentItem, key: str) -> MediaShape:
        """Size and times of a medium without its pixels, decoding it first if it is not there.

        Raises:
            BadData: If it cannot be read.
        """
        path = self._stored(item, key)
        numbers = int(np.fromfile(path, dtype=np.float64, count=1)[0])
        return _read_head(np.fromfile(path, dtype=np.uint8, count=8 * (1 + numbers)))[0]

    def prepare(
        self, items: Sequence[ContentItem], workers: int = 2, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, BadData]:
        """Decode everything that is not there yet, in several processes.

        Args:
            items: Media; repeated ones are decoded once.
            workers: Processes; 1 decodes in this one.
            progress: Called with the numbers of finished and of all media to decode.

        Returns:
            For each medium that cannot be read, by key, why.
        """
        keyed = {self.reader.key(item): item for item in items}
        wanted = {key: item for key, item in keyed.items() if not self._is_stored(key)}
        failures: dict[str, BadData] = {}
        for done, (key, error) in enumerate(self._decode(wanted, workers), 1):
            if error is not None:
                failures[key] = error
            if progress is not None:
                progress(done, len(wanted))
        return failures

    def _decode(self, wanted: dict[str, ContentItem], workers: int) -> Iterator[tuple[str, BadData | None]]:
        decode = partial(_decode_one, self)
        if workers <= 1 or len(wanted) < _WORTH_PROCESSES:
            yield from ((key, decode((key, item))) for key, item in wanted.items())
            return
        for key, error, died in run_in_processes(decode, {key: (key, item) for key, item in wanted.items()}, workers):
            if died:
                (self.folder / f"{key}.deadly").touch()  # so that no other process tries again
            yield key, _deadly(wanted[key]) if died else error

    def _is_stored(self, key: str) -> bool:
        try:
            return (self.folder / f"{key}.frames").stat().st_size > 0
        except FileNotFoundError:
            return False

    def _stored(self, item: ContentItem, key: str) -> Path:
        """The stored file of a medium, decoding it first if it is not there."""
        path = self.folder / f"{key}.frames"
        if not self._is_stored(key):
            if path.with_suffix(".deadly").exists():
                raise _deadly(item)
            self._store(path, self.reader.read(item))
        return path

    def _store(self, path: Path, frames: Frames) -> None:
        partial_path = path.with_suffix(f".{os.getpid()}.partial")
        try:
            with partial_path.open("wb") as file:
                head = _head(frames)
                np.array([len(head), *head], dtype=np.float64).tofile(file)
                for run in frames.runs:
                    np.ascontiguousarray(run).tofile(file)
            partial_path.replace(path)
        finally:
            partial_path.unlink(missing_ok=True)


def _head(frames: Frames) -> list[float]:
    """Numbers before the pixels of a stored file: rate, frames, two sizes, seconds of every frame, which ones are fast."""
    firsts = np.cumsum([0, *(len(run) for run in frames.runs)])[:-1]
    sizes = {
        bool(frames.fast) and frames.fast[first]: run.shape[1:3] for first, run in zip(firsts, frames.runs, strict=True)
    }
    fast_size = sizes.get(True, (0, 0))
    count = sum(len(run) for run in frames.runs)
    slow_size = sizes.get(False, (0, 0))
    return [frames.fps, count, *slow_size, *fast_size, *frames.timestamps, *frames.fast]


def _read_head(raw: np.ndarray) -> tuple[MediaShape, int]:
    """Size and times at the beginning of a stored file, and where its pixels begin.

    A file is numbers of eight bytes (how many follow; those of :func:`_head`), then pixels. NumPy's own format would cost more
    time than the pixels of a small clip.
    """
    numbers = int(raw[:8].view(np.float64)[0])
    head = raw[8 : 8 * (1 + numbers)].view(np.float64)
    frames, height, width, fast_height, fast_width = head[1:6].astype(int).tolist()
    flags = frames if fast_height else 0
    times, fast = head[6 : numbers - flags], head[numbers - flags :]
    shape = MediaShape(
        frames=frames,
        height=height,
        width=width,
        timestamps=tuple(times.tolist()),
        fps=float(head[0]),
        fast=tuple(fast.astype(bool).tolist()),
        fast_height=fast_height,
        fast_width=fast_width,
    )
    return shape, 8 * (1 + numbers)


def _deadly(item: ContentItem) -> BadData:
    return BadData("broken_media", f"{item.path} kills the process that decodes it, by a crash or for want of memory")


def _decode_one(cache: MediaCache, wanted: tuple[str, ContentItem]) -> BadData | None:
    key, item = wanted
    try:
        cache._store(cache.folder / f"{key}.frames", cache.reader.read(item))
    except BadData as error:
        return error
    return None
