"""From a media file to pictures of their final size. Imports no torch: decoding processes stay light."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from keyekit.data.errors import BadData
from keyekit.data.media import Frames, Times, Transparency, check_size, plan_video, read_image, read_video
from keyekit.data.processing.geometry import KEYE_PATCHES, PatchGeometry
from keyekit.data.processing.resize import Interpolation, resize_frames, smart_resize
from keyekit.data.sample import ContentItem, Sample
from keyekit.data.sampling import FrameLimits, FramePlan, FrameSampler, UniformFps

__all__ = ["MediaReader", "SecondResize"]

_VERSION = 4  # part of every key: counts up when the same file and settings give other pictures or times
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
        times: Whether a frame's second is what the ``container`` says, or its ``index`` over the frame rate.
        second_resize: Limits of a second resizing; ``None`` for none.
        geometry: Patches of a token.
        max_source_pixels: Refuse images and frames with more pixels than this, before and after resizing.
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
    second_resize: SecondResize | None = None
    geometry: PatchGeometry = KEYE_PATCHES
    max_source_pixels: int = 2**26

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
            sampler, limits = self._policy(item)
            return plan_video(item.path, sampler, limits, self.max_source_pixels)

    def _read_image(self, item: ContentItem) -> Frames:
        assert item.path is not None
        options = dict(item.options)
        low = options.pop("min_pixels", self.min_image_tokens * self.geometry.token_pixels)
        high = options.pop("max_pixels", self.max_image_tokens * self.geometry.token_pixels)
        if options:
            raise ValueError(f"unknown image option {', '.join(options)}: choose min_pixels or max_pixels")
        pixels = read_image(item.path, self.max_source_pixels, self.transparency).pixels
        _, height, width, _ = pixels.shape
        size = smart_resize(height, width, low, high, factor=self.geometry.token_side)
        check_size(size, self.max_source_pixels)
        frames = Frames(runs=(resize_frames(pixels, *size),))
        if self.second_resize is None:
            return frames
        return self.second_resize.apply(frames, "bicubic", self.geometry)

    def _read_video(self, item: ContentItem) -> Frames:
        assert item.path is not None
        sampler, limits = self._policy(item)
        frames = read_video(item.path, sampler, self.max_source_pixels, limits, self.frame_interpolation, self.times)
        if self.second_resize is None or not self.second_resize.frames:
            return frames
        return self.second_resize.apply(frames, self.frame_interpolation, self.geometry)

    def _policy(self, item: ContentItem) -> tuple[FrameSampler, FrameLimits]:
        options = dict(item.options)
        limits = self.limits(options)
        return (self.frame_sampler or UniformFps()).adapted(options), limits

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
        assert item.path is not None
        try:
            status = item.path.stat()
            identity: list[Any] = [str(item.path.absolute()), status.st_size, status.st_mtime_ns]
        except (OSError, ValueError):  # ValueError: a name that no file can have
            identity = [str(item.path), "missing"]
        sampler = self.frame_sampler or UniformFps()
        choice = [type(sampler).__name__, sorted(vars(sampler).items()), item.kind, sorted(item.options.items())]
        settings = [getattr(self, name) for name in _DECIDING]
        text = json.dumps([*identity, choice, settings, _VERSION], default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


_DECIDING = tuple(  # a frame sampler is told by its own settings, and the source limit refuses media, but changes none
    field.name for field in fields(MediaReader) if field.name not in ("frame_sampler", "max_source_pixels")
)


@contextmanager
def _as_bad_data(item: ContentItem) -> Iterator[None]:
    """What options and sizes cannot be, as an error of the sample."""
    try:
        yield
    except BadData:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:
        raise BadData("bad_media", f"{item.path}: {error}") from error
