"""Reading images and videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData
from keyekit.data.location import Location, opened_image
from keyekit.data.processing.resize import Interpolation
from keyekit.data.sampling import FrameLimits, FramePlan, FrameSampler
from keyekit.data.video.base import MissingFrames, OpenVideo, Resizing, VideoReader
from keyekit.data.video.images import ImageList
from keyekit.data.video.pyav import PyAV

__all__ = ["Cut", "Frames", "Times", "Transparency", "check_size", "plan_video", "read_image", "read_video"]

Result = TypeVar("Result")

Times = Literal["container", "index"]
"""The clock by which frames are chosen and timed. ``container``: a frame is the one that is shown nearest to the second that a
policy asks for, and has the second that the container says. ``index``: frames are counted, and a frame's second is its index
over the frame rate, as the released code does. They differ where frames come unevenly."""

Transparency = Literal["white", "white_rgba", "drop"]
"""What shows through: white; white in RGBA images alone, as in the Preview (Keye-VL 8B sheet 2.1 item 1); or whatever colour
the transparent pixels have, as in 1.5 and 2.0 (8B sheet 3.2 item 7)."""

Cut = tuple[float | None, float | None]
"""Seconds between which a video is looked at; ``None`` for its start or its end."""

_LIST_FPS = 2.0  # Keye-VL 8B sheet 2.2 item 5: a list of images has two per second unless a sample says otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Decoded pictures of one medium.

    Args:
        runs: Consecutive frames of one size, in the order of time: ``[frames, height, width, 3]`` uint8 RGB each. All frames of
            a medium are one run, unless some are smaller than others (Keye-VL 1.5).
        timestamps: Seconds of each frame since the first frame of the file; empty for an image, and for a list of images of
            unknown rate.
        fps: Frames per second that these frames amount to; 0 for an image.
        fast: For each frame whether it is a small one; empty if none is.
    """

    runs: tuple[np.ndarray, ...]
    timestamps: tuple[float, ...] = ()
    fps: float = 0.0
    fast: tuple[bool, ...] = ()

    @property
    def pixels(self) -> np.ndarray:
        """All frames as ``[frames, height, width, 3]`` uint8.

        Raises:
            ValueError: If they have more than one size.
        """
        if len({run.shape[1:] for run in self.runs}) > 1:
            raise ValueError("slow and fast frames have two sizes: take them run by run, from Frames.runs")
        return self.runs[0] if len(self.runs) == 1 else np.concatenate(self.runs)


def read_video(
    source: Location | Sequence[Location],
    sampler: FrameSampler,
    max_pixels: int = 2**26,
    limits: FrameLimits | None = None,
    interpolation: Interpolation = "bicubic",
    times: Times = "container",
    *,
    reader: VideoReader | None = None,
    resizing: Resizing = "fused",
    time_limit: float | None = None,
    cut: Cut = (None, None),
    list_fps: float | None = None,
) -> Frames:
    """Decode the frames that a sampler chooses, with their times.

    Only wanted frames are kept, each in the place and at the size that it ends in: memory does not grow with the video.

    Args:
        source: A video, or a list of images.
        sampler: Chooses frames and their size.
        max_pixels: Refuse videos whose frames have more pixels, before or after resizing.
        limits: What frames may cost; ``None`` keeps their size.
        interpolation: How frames are resized.
        times: The clock by which frames are chosen and timed.
        reader: What decodes; PyAV by default.
        resizing: Whether decoder and scaler are one step, or resizing is that of the released processors to the bit.
        time_limit: Seconds that the video may take; ``None`` for as long as it likes.
        cut: Seconds between which frames are chosen. Frames keep the seconds that they have in the whole video.
        list_fps: Images per second of a list; ``None`` for two, and no timestamps.

    Raises:
        BadData: ``missing_media``, ``broken_media``, ``empty_video``, ``media_too_large`` or ``timed_out``.
        ValueError: If the sampler cannot keep the limits, or nothing lies within the cut.
    """

    def read(video: OpenVideo) -> Frames:
        plan = _planned(video, sampler, limits, max_pixels, times, cut)
        frames = _taken(video, plan, interpolation, resizing, keep_size=limits is None)
        untimed = not isinstance(source, Location) and list_fps is None
        return replace(frames, timestamps=()) if untimed else frames

    return _with_open(source, reader, max_pixels, time_limit, list_fps, read)


def plan_video(
    source: Location | Sequence[Location],
    sampler: FrameSampler,
    limits: FrameLimits,
    max_pixels: int = 2**26,
    times: Times = "container",
    *,
    reader: VideoReader | None = None,
    time_limit: float | None = None,
    cut: Cut = (None, None),
    list_fps: float | None = None,
) -> FramePlan:
    """Which frames a sampler chooses in a file, when they are shown, how large they become, and why.

    Decodes the first frame, and otherwise no more than the sampler looks at. Arguments are those of :func:`read_video`.

    Raises:
        BadData: As :func:`read_video`, as far as it is found without decoding.
        ValueError: If the sampler cannot keep the limits, or nothing lies within the cut.
    """

    def plan(video: OpenVideo) -> FramePlan:
        return _planned(video, sampler, limits, max_pixels, times, cut)

    return _with_open(source, reader, max_pixels, time_limit, list_fps, plan)


def _with_open(
    source: Location | Sequence[Location],
    reader: VideoReader | None,
    max_pixels: int,
    time_limit: float | None,
    list_fps: float | None,
    action: Callable[[OpenVideo], Result],
) -> Result:
    """Do something with an open video; where an index promises frames that are not there, with those that are."""
    if not isinstance(source, Location):
        deadline = Deadline(time_limit, f"a list of {len(source)} images")

        def read(location: Location) -> np.ndarray:
            return read_image(location, max_pixels).runs[0][0]

        with ImageList(source, _LIST_FPS if list_fps is None else list_fps, read, deadline) as images:
            return action(images)
    deadline, decoder = Deadline(time_limit, str(source)), reader or PyAV()
    for scan in (False, True):
        try:
            with decoder.open(source, max_pixels, deadline, scan) as video:
                return action(video)
        except MissingFrames as missing:
            if scan:
                message = f"{source} promises frames that cannot be decoded, number {missing.index} first"
                raise BadData("broken_media", message) from None
    raise AssertionError("a second try ends one way or the other")


def _planned(
    video: OpenVideo, sampler: FrameSampler, limits: FrameLimits | None, max_pixels: int, times: Times, cut: Cut
) -> FramePlan:
    """A plan in frames of the file, with their seconds."""
    seconds = video.seconds if times == "container" else np.arange(video.facts.num_frames) / video.facts.fps
    first, last = _within(seconds, cut)
    facts = replace(video.facts, num_frames=last - first + 1)

    def chosen(indices: Sequence[int]) -> list[int]:
        if times == "index":
            return [first + index for index in indices]
        return _nearest(seconds, seconds[first] + np.asarray(indices) / facts.fps, first, last)

    if limits is None:
        indices = sampler.select(facts.num_frames, facts.fps)
        fps = len(indices) / facts.num_frames * facts.fps
        plan = FramePlan(indices=tuple(indices), size=(facts.height, facts.width), fps=fps, reason="as it is")
    else:
        plan = sampler.plan(facts, limits, lambda indices: video.frames(chosen(indices)))
        check_size(plan.size, max_pixels)
    if not plan.indices:
        raise ValueError(f"{type(sampler).__name__} chose none of {facts.num_frames} frames")
    places = chosen(plan.indices)
    where = "" if cut == (None, None) else f", between {seconds[first]:.2f} and {seconds[last]:.2f} s"
    return replace(
        plan,
        indices=tuple(places),
        seconds=tuple(seconds[places].tolist()),
        reason=plan.reason + where,
    )


def _within(seconds: np.ndarray, cut: Cut) -> tuple[int, int]:
    """First and last frame of a cut."""
    start, end = -math.inf if cut[0] is None else cut[0], math.inf if cut[1] is None else cut[1]
    inside = np.flatnonzero((seconds >= start) & (seconds <= end))
    if not len(inside):
        raise ValueError(
            f"no frame lies between video_start={cut[0]} and video_end={cut[1]} in a video of {seconds[-1]:.2f} seconds"
        )
    return int(inside[0]), int(inside[-1])


def _nearest(seconds: np.ndarray, wanted: np.ndarray, first: int, last: int) -> list[int]:
    """For each second the frame that is shown nearest to it, the earlier of two."""
    after = np.searchsorted(seconds, wanted).clip(first, last)
    before = (after - 1).clip(first, last)
    return np.where(wanted - seconds[before] <= seconds[after] - wanted, before, after).tolist()


def _taken(
    video: OpenVideo, plan: FramePlan, interpolation: Interpolation, resizing: Resizing, keep_size: bool
) -> Frames:
    """The frames of a plan, each decoded into its place."""
    count = len(plan.indices)
    sizes = [plan.size_of(place) for place in range(count)]
    together = [list(run) for _, run in groupby(range(count), key=lambda place: bool(plan.fast) and plan.fast[place])]
    runs = [np.empty((len(run), *sizes[run[0]], 3), dtype=np.uint8) for run in together]
    pictures = video.frames(plan.indices, None if keep_size else sizes, interpolation, resizing)
    places = (run[place] for run in runs for place in range(len(run)))
    for place, picture in zip(places, pictures, strict=True):
        place[:] = picture
    return Frames(runs=tuple(runs), timestamps=plan.seconds, fps=plan.fps, fast=plan.fast)


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse to make a picture larger than the limit.

    Raises:
        ValueError: If it would be.
    """
    if size[0] * size[1] > max_pixels:
        raise ValueError(f"resizing to {size[0]}x{size[1]} exceeds {max_pixels} pixels: lower min_pixels")


def read_image(
    location: Location,
    max_pixels: int = 2**26,
    transparency: Transparency = "white",
    time_limit: float | None = None,
) -> Frames:
    """Read an image as one RGB frame.

    Args:
        location: An image.
        max_pixels: Refuse larger images before they are decompressed.
        transparency: See :data:`Transparency`.
        time_limit: Seconds that it may take; ``None`` for as long as it likes.

    Raises:
        BadData: ``missing_media``, ``broken_media``, ``media_too_large`` or ``timed_out``.
    """
    try:
        with opened_image(location, Deadline(time_limit, str(location))) as file, Image.open(file) as image:
            if image.width * image.height > max_pixels:
                message = f"{location}: {image.width}x{image.height} exceeds {max_pixels} pixels"
                raise BadData("media_too_large", message)
            if (
                transparency != "drop"
                and (image.mode == "RGBA" or transparency == "white")
                and image.has_transparency_data
            ):
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return Frames(runs=(np.asarray(image.convert("RGB"))[None],))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "media_too_large" if isinstance(error, Image.DecompressionBombError) else "broken_media"
        raise BadData(reason, f"{location} cannot be read: {error}") from error
