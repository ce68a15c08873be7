"""Decoded and resized media, kept on disk: every file is decoded once. Imports no torch: decoding processes stay light."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keyekit.data.errors import BadData
from keyekit.data.media import Frames, read_image, read_video
from keyekit.data.processes import run_in_processes
from keyekit.data.processing.resize import TOKEN_PIXELS, resize_frames, smart_resize
from keyekit.data.sample import ContentItem
from keyekit.data.sampling import FrameSampler, UniformFps

__all__ = ["MediaCache", "MediaReader", "MediaShape"]

_WORTH_PROCESSES = 64
"""Fewest media for which processes are started."""

_VERSION = 3  # part of every key: counts up when the same file and settings give other pictures or times


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReader:
    """Reads a medium and resizes it to its final size.

    The limits are those of the released Preview model (Keye-VL 8B sheet 2.1 item 2 and 2.2).

    Args:
        frame_sampler: Which frames of a video are read; two per second by default.
        min_image_tokens: Fewest decoder tokens of an image.
        max_image_tokens: Most decoder tokens of an image.
        min_frame_tokens: Fewest decoder tokens of a video frame.
        max_frame_tokens: Most decoder tokens of a video frame.
        max_video_tokens: Most decoder tokens of a whole video, in name: as in the released code a frame may take twice its
            share, and never gets less than 1.05 times ``min_frame_tokens``.
        max_source_pixels: Refuse images and frames with more pixels than this, before and after resizing.
    """

    frame_sampler: FrameSampler | None = None
    min_image_tokens: int = 4
    max_image_tokens: int = 16384
    min_frame_tokens: int = 128
    max_frame_tokens: int = 768
    max_video_tokens: int = 115_200
    max_source_pixels: int = 2**26

    def read(self, item: ContentItem) -> Frames:
        """Decode, sample and resize one medium.

        Raises:
            BadData: If the file is missing, broken, empty or too large, or an option of the item is not understood.
        """
        try:
            return self._read_image(item) if item.kind == "image" else self._read_video(item)
        except BadData:
            raise
        except (ValueError, TypeError, ArithmeticError) as error:
            raise BadData("bad_media", f"{item.path}: {error}") from error

    def _read_image(self, item: ContentItem) -> Frames:
        assert item.path is not None
        low, high, options = self._limits(item, self.min_image_tokens, self.max_image_tokens)
        if options:
            raise ValueError(f"unknown image option {', '.join(options)}: choose min_pixels or max_pixels")
        frames = read_image(item.path, self.max_source_pixels)
        _, height, width, _ = frames.pixels.shape
        return Frames(resize_frames(frames.pixels, *self._size(height, width, low, high)))

    def _read_video(self, item: ContentItem) -> Frames:
        assert item.path is not None
        low, high, options = self._limits(item, self.min_frame_tokens, self.max_frame_tokens)
        sampler = (self.frame_sampler or UniformFps()).adapted(options)

        def size(height: int, width: int, num_frames: int) -> tuple[int, int]:
            share = self.max_video_tokens * TOKEN_PIXELS / num_frames * 2  # Keye-VL 8B sheet 2.2 item 4
            return self._size(height, width, low, high if share >= high else max(share, 1.05 * low))

        return read_video(item.path, sampler, self.max_source_pixels, size)

    @staticmethod
    def _limits(item: ContentItem, min_tokens: int, max_tokens: int) -> tuple[float, float, dict[str, Any]]:
        options = dict(item.options)
        low = options.pop("min_pixels", min_tokens * TOKEN_PIXELS)
        return low, options.pop("max_pixels", max_tokens * TOKEN_PIXELS), options

    def _size(self, height: int, width: int, low: float, high: float) -> tuple[int, int]:
        size = smart_resize(height, width, min_pixels=low, max_pixels=high)
        if size[0] * size[1] > self.max_source_pixels:
            raise ValueError(
                f"resizing to {size[0]}x{size[1]} exceeds {self.max_source_pixels} pixels: lower min_pixels"
            )
        return size

    def key(self, item: ContentItem) -> str:
        """A name that changes with the file and with everything that decides what is read from it."""
        assert item.path is not None
        try:
            status = item.path.stat()
            identity: list[Any] = [os.path.abspath(item.path), status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):  # ValueError: a name that no file can have
            identity = [str(item.path), "missing"]
        sampler = self.frame_sampler or UniformFps()
        settings = [type(sampler).__name__, sorted(vars(sampler).items()), item.kind, sorted(item.options.items())]
        limits = [self.min_image_tokens, self.max_image_tokens, self.min_frame_tokens, self.max_frame_tokens]
        limits += [self.max_video_tokens, _VERSION]
        text = json.dumps([*identity, settings, limits], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class MediaShape(NamedTuple):
    """What decides how many tokens a medium becomes."""

    frames: int
    height: int
    width: int
    timestamps: tuple[float, ...]
    fps: float


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
        pixels = raw[start:].reshape(shape.frames, shape.height, shape.width, 3)
        return Frames(pixels, shape.timestamps, shape.fps)

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
                head = np.array([frames.fps, *frames.pixels.shape[:3], *frames.timestamps], dtype=np.float64)
                np.array([len(head)], dtype=np.float64).tofile(file)
                head.tofile(file)
                np.ascontiguousarray(frames.pixels).tofile(file)
            partial_path.replace(path)
        finally:
            partial_path.unlink(missing_ok=True)


def _read_head(raw: np.ndarray) -> tuple[MediaShape, int]:
    """Size and times at the beginning of a stored file, and where its pixels begin.

    A file is numbers of eight bytes (how many follow; rate, frames, height, width; seconds of every frame), then pixels.
    NumPy's own format would cost more time than the pixels of a small clip.
    """
    numbers = int(raw[:8].view(np.float64)[0])
    head = raw[8 : 8 * (1 + numbers)].view(np.float64)
    frames, height, width = head[1:4].astype(int).tolist()
    return MediaShape(frames, height, width, tuple(head[4:].tolist()), float(head[0])), 8 * (1 + numbers)


def _deadly(item: ContentItem) -> BadData:
    return BadData("broken_media", f"{item.path} kills the process that decodes it, by a crash or for want of memory")


def _decode_one(cache: MediaCache, wanted: tuple[str, ContentItem]) -> BadData | None:
    key, item = wanted
    try:
        cache._store(cache.folder / f"{key}.frames", cache.reader.read(item))
    except BadData as error:
        return error
    return None
