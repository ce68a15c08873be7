"""Decoded and resized media, kept on disk so that every file is decoded once. Imports no torch: decoding processes stay light."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keyekit.data.errors import BadData
from keyekit.data.media import Frames, read_image, read_video
from keyekit.data.processing.resize import TOKEN_PIXELS, resize_frames, smart_resize
from keyekit.data.sample import ContentItem
from keyekit.data.sampling import FrameSampler, UniformFps

__all__ = ["MediaCache", "MediaReader", "MediaShape"]


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
        max_source_pixels: Refuse images and frames with more pixels than this.
    """

    frame_sampler: FrameSampler | None = None
    min_image_tokens: int = 4
    max_image_tokens: int = 16384
    min_frame_tokens: int = 128
    max_frame_tokens: int = 768
    max_source_pixels: int = 2**26

    def read(self, item: ContentItem) -> Frames:
        """Decode, sample and resize one medium.

        Raises:
            BadData: If the file is missing, broken, empty or too large, or an option of the item is not understood.
        """
        assert item.path is not None
        options = dict(item.options)
        kind = "image" if item.kind == "image" else "frame"
        low = options.pop("min_pixels", getattr(self, f"min_{kind}_tokens") * TOKEN_PIXELS)
        high = options.pop("max_pixels", getattr(self, f"max_{kind}_tokens") * TOKEN_PIXELS)
        try:
            if item.kind == "image":
                if options:
                    raise ValueError(f"unknown image option {', '.join(options)}: choose min_pixels or max_pixels")
                frames = read_image(item.path, self.max_source_pixels)
            else:
                sampler = (self.frame_sampler or UniformFps()).adapted(options)
                frames = read_video(item.path, sampler, self.max_source_pixels)
            size = smart_resize(*frames.pixels.shape[1:3], min_pixels=low, max_pixels=high)
        except BadData:
            raise
        except (ValueError, TypeError) as error:
            raise BadData("bad_media", f"{item.path}: {error}") from error
        return Frames(resize_frames(frames.pixels, *size), frames.timestamps, frames.fps)

    def key(self, item: ContentItem) -> str:
        """A name that changes with the file and with everything that decides what is read from it."""
        assert item.path is not None
        try:
            status = item.path.stat()
            identity: list[Any] = [str(item.path.resolve()), status.st_size, status.st_mtime_ns]
        except OSError:
            identity = [str(item.path), "missing"]
        sampler = self.frame_sampler or UniformFps()
        settings = [type(sampler).__name__, sorted(vars(sampler).items()), item.kind, sorted(item.options.items())]
        limits = [self.min_image_tokens, self.max_image_tokens, self.min_frame_tokens, self.max_frame_tokens]
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
        path = self.folder / f"{key or self.reader.key(item)}.npy"
        if not path.exists():
            self._store(path, self.reader.read(item))
        with path.open("rb") as file:
            head, pixels = np.load(file), np.load(file)
        return Frames(pixels, tuple(head[4:].tolist()), float(head[0]))

    def describe(self, item: ContentItem, key: str) -> MediaShape:
        """Size and times of a medium without its pixels, decoding it first if it is not there.

        Raises:
            BadData: If it cannot be read.
        """
        path = self.folder / f"{key}.npy"
        if not path.exists():
            self._store(path, self.reader.read(item))
        with path.open("rb") as file:
            head = np.load(file)
        frames, height, width = head[1:4].astype(int).tolist()
        return MediaShape(frames, height, width, tuple(head[4:].tolist()), float(head[0]))

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
        wanted = {key: item for item in items if not (self.folder / f"{(key := self.reader.key(item))}.npy").exists()}
        failures: dict[str, BadData] = {}
        for done, (key, error) in enumerate(self._decode(list(wanted.items()), workers), 1):
            if error is not None:
                failures[key] = error
            if progress is not None:
                progress(done, len(wanted))
        return failures

    def _decode(self, wanted: list[tuple[str, ContentItem]], workers: int) -> Iterator[tuple[str, BadData | None]]:
        decode = partial(_decode_one, self)
        if workers <= 1 or len(wanted) < 64:
            yield from map(decode, wanted)
            return
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            yield from pool.imap_unordered(decode, wanted, chunksize=16)

    def _store(self, path: Path, frames: Frames) -> None:
        partial_path = path.with_suffix(f".{os.getpid()}.partial")
        with partial_path.open("wb") as file:
            np.save(file, np.array([frames.fps, *frames.pixels.shape[:3], *frames.timestamps], dtype=np.float64))
            np.save(file, frames.pixels)
        partial_path.replace(path)


def _decode_one(cache: MediaCache, wanted: tuple[str, ContentItem]) -> tuple[str, BadData | None]:
    key, item = wanted
    try:
        cache._store(cache.folder / f"{key}.npy", cache.reader.read(item))
    except BadData as error:
        return key, error
    return key, None
