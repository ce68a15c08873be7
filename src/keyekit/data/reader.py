"""From a media file to pictures of their final size. Imports no torch: decoding processes stay light."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.location import Location, identity
from keyekit.data.media import Cut, Frames, Times, Transparency, check_size, plan_video, read_image, read_video
from keyekit.data.processing.geometry import KEYE_PATCHES, PatchGeometry
from keyekit.data.processing.resize import Interpolation, resize_frames, smart_resize
from keyekit.data.sample import ContentItem, Sample
from keyekit.data.sampling import FrameLimits, FramePlan, FrameSampler, UniformFps
from keyekit.data.video.base import Resizing, VideoReader
from keyekit.data.video.pyav import PyAV

__all__ = ["MediaReader", "SecondResize"]

_VERSION = 5  # part of every key: counts up when the same file and settings give other pictures or times
_NUM_VIDEOS = "num_videos"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondResize:
    """The released Hugging Face processor resizes again what the released utilities sized, within limits of its own.

    Keye-VL 8B sheet 2.1 item 3 and 2.2 item 7; the defaults are those of the Preview's ``preprocessor_config.json``.

    Args:
        min_pixels: Smallest area.
        max_pixels: Largest area; 1280 tokens, far below the 16384 of utilities and paper.
        frames: Whether video frames are resized again, too.
    """

    min_pixels: int = 3136
    max_pixels: int = 1_003_520
    frames: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(f"need 0 < min_pixels <= max_pixels, got {self.min_pixels} and {self.max_pixels}")

    def apply(self, frames: Frames, interpolation: Interpolation, geometry: PatchGeometry) -> Frames:
        """Resize pictures whose area is outside the limits."""
        resized = []
        for run in frames.runs:
            _, height, width, _ = run.shape
            size = smart_resize(height, width, self.min_pixels, self.max_pixels, factor=geometry.token_side)
            resized.append(resize_frames(run, *size, interpolation))
        return replace(frames, runs=tuple(resized))


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaReader:
    """Reads a medium and resizes it to its final size.

    The defaults are those of the utilities of the Preview (Keye-VL 8B sheet 2.1 item 2 and 2.2);
    :func:`keyekit.data.processors.processor_of` has the settings of every release.

    Args:
        frame_sampler: Which frames of a video are read, and how its budget is spent; two per second by default.
        min_image_tokens: Fewest decoder tokens of an image.
        max_image_tokens: Most decoder tokens of an image.
        min_frame_tokens: Fewest decoder tokens of a video frame.
        max_frame_tokens: Most decoder tokens of a video frame.
        max_video_tokens: Decoder tokens of a whole video; what it means exactly is the frame sampler's to say.
        share_video_budget: Whether the videos of a sample divide one budget evenly.
        transparency: What shows through transparent images: ``white`` for all, ``white_rgba`` for RGBA files alone, or
            ``drop`` for whatever colour the transparent pixels have.
        frame_interpolation: How video frames are resized; images always by bicubic interpolation.
        times: The clock by which frames are chosen and timed: ``container``, what the file says, or ``index``, the number of
            a frame over the frame rate, as the released code does.
        resizing: ``fused`` turns a decoded frame into RGB of its final size in one step; ``exact`` makes RGB first and resizes
            it as the released processors do, at several times the cost. Images are always resized exactly.
        second_resize: Limits of a second resizing; ``None`` for none.
        geometry: Patches of a token.
        max_source_pixels: Refuse images and frames with more pixels than this, before and after resizing.
        video_reader: What decodes videos; PyAV with one thread by default.
        time_limit: Seconds that a medium may take (Keye-VL-2.0 sheet 6.2); ``None`` for as long as it likes.
    """

    frame_sampler: FrameSampler | None = None
    min_image_tokens: int = 4
    max_image_tokens: int = 16384
    min_frame_tokens: int = 128
    max_frame_tokens: int = 768
    max_video_tokens: int = 115_200
    share_video_budget: bool = False
    transparency: Transparency = "white"
    frame_interpolation: Interpolation = "bicubic"
    times: Times = "container"
    resizing: Resizing = "fused"
    second_resize: SecondResize | None = None
    geometry: PatchGeometry = KEYE_PATCHES
    max_source_pixels: int = 2**26
    video_reader: VideoReader | None = None
    time_limit: float | None = 600.0

    def items(self, sample: Sample) -> tuple[ContentItem, ...]:
        """The media of a sample as they are to be read: where videos divide a budget, each knows among how many."""
        videos = sum(item.kind == "video" for item in sample.media)
        if not self.share_video_budget or videos < 2:
            return sample.media
        return tuple(
            replace(item, options={**item.options, _NUM_VIDEOS: videos}) if item.kind == "video" else item
            for item in sample.media
        )

    def read(self, item: ContentItem) -> Frames:
        """Decode, sample and resize one medium.

        Raises:
            BadData: If the file is missing, broken, empty or too large, or an option of the item is not understood.
        """
        with _as_bad_data(item):
            return self._read_image(item) if item.kind == "image" else self._read_video(item)

    def plan(self, item: ContentItem) -> FramePlan:
        """Which frames of a video would be read, how large, and why; for looking, not on the way of :meth:`read`.

        A second resizing is not part of a plan.

        Raises:
            BadData: If the file is missing, broken, empty or too large, or an option of the item is not understood.
            TypeError: If the item is no video.
        """
        if item.kind != "video" or item.path is None:
            raise TypeError(f"frames are planned for videos, this is an item of kind {item.kind!r}")
        with _as_bad_data(item):
            asked = self._policy(item)
            return plan_video(
                asked.source,
                asked.sampler,
                asked.limits,
                self.max_source_pixels,
                self.times,
                reader=self.video_reader,
                time_limit=self.time_limit,
                cut=asked.cut,
                list_fps=asked.list_fps,
            )

    def _read_image(self, item: ContentItem) -> Frames:
        assert isinstance(item.path, Location)
        options = dict(item.options)
        low = options.pop("min_pixels", self.min_image_tokens * self.geometry.token_pixels)
        high = options.pop("max_pixels", self.max_image_tokens * self.geometry.token_pixels)
        if options:
            raise ValueError(f"unknown image option {', '.join(options)}: choose min_pixels or max_pixels")
        pixels = read_image(item.path, self.max_source_pixels, self.transparency, self.time_limit).pixels
        _, height, width, _ = pixels.shape
        size = smart_resize(height, width, low, high, factor=self.geometry.token_side)
        check_size(size, self.max_source_pixels)
        frames = Frames(runs=(resize_frames(pixels, *size),))
        if self.second_resize is None:
            return frames
        return self.second_resize.apply(frames, "bicubic", self.geometry)

    def _read_video(self, item: ContentItem) -> Frames:
        asked = self._policy(item)
        frames = read_video(
            asked.source,
            asked.sampler,
            self.max_source_pixels,
            asked.limits,
            self.frame_interpolation,
            self.times,
            reader=self.video_reader,
            resizing=self.resizing,
            time_limit=self.time_limit,
            cut=asked.cut,
            list_fps=asked.list_fps,
        )
        if self.second_resize is None or not self.second_resize.frames:
            return frames
        return self.second_resize.apply(frames, self.frame_interpolation, self.geometry)

    def _policy(self, item: ContentItem) -> _Asked:
        """What a video is asked for, with the options that it brings."""
        options = dict(item.options)
        limits = self.limits(options)
        source: Any = item.path
        several = not isinstance(source, Location)
        list_fps = options.pop("fps", None) if several else None  # of a list, it says how many images a second has
        sampler = self.frame_sampler or UniformFps()
        cut: Cut = (None, None)
        if not sampler.own_cuts:
            cut = (options.pop("video_start", None), options.pop("video_end", None))
        return _Asked(
            source=tuple(source) if several else source,
            sampler=sampler.adapted(options),
            limits=limits,
            cut=cut,
            list_fps=list_fps,
        )

    def limits(self, options: dict[str, Any]) -> FrameLimits:
        """What the frames of a video may cost; takes the options that say so out of ``options``.

        Understands ``min_pixels``, ``max_pixels`` and ``video_total_pixels``.
        """
        token = self.geometry.token_pixels
        default = self.min_frame_tokens * token
        high = options.pop("max_pixels", self.max_frame_tokens * token)
        low = options.pop("min_pixels", min(default, high))
        if (self.frame_sampler or UniformFps()).firm_minimum:
            low = max(low, default)
        videos = options.pop(_NUM_VIDEOS, 1)
        total = options.pop("video_total_pixels", self.max_video_tokens * token)
        return FrameLimits(
            min_pixels=low, max_pixels=high, total_pixels=total / videos, num_videos=videos, geometry=self.geometry
        )

    def key(self, item: ContentItem) -> str:
        """A name that changes with the file and with everything that decides what is read from it."""
        source: Any = item.path
        assert source is not None
        several = [source] if isinstance(source, Location) else source
        about = [identity(location) for location in several]
        sampler = self.frame_sampler or UniformFps()
        decoder = type(self.video_reader or PyAV()).__name__  # its threads change nothing
        choice = [
            type(sampler).__name__,
            sorted(vars(sampler).items()),
            decoder,
            item.kind,
            sorted(item.options.items()),
        ]
        settings = [getattr(self, name) for name in _DECIDING]
        text = json.dumps([*about, choice, settings, _VERSION], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


_APART = ("frame_sampler", "video_reader", "max_source_pixels", "time_limit")
"""A sampler is told by its own settings, a decoder by its name, and limits refuse media, but change none."""

_DECIDING = tuple(field.name for field in fields(MediaReader) if field.name not in _APART)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a video is asked for."""

    source: Location | tuple[Location, ...]
    sampler: FrameSampler
    limits: FrameLimits
    cut: Cut
    list_fps: float | None


@contextmanager
def _as_bad_data(item: ContentItem) -> Iterator[None]:
    """What options and sizes cannot be, as an error of the sample."""
    try:
        yield
    except BadData:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        raise BadData("bad_media", f"{item.path}: {error}") from error
