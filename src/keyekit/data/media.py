"""Reading images and videos."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from keyekit.data.errors import BadData
from keyekit.data.processing.resize import Interpolation, resize_frames
from keyekit.data.sampling import FrameLimits, FramePlan, FrameSampler, VideoFacts

__all__ = ["Frames", "Times", "Transparency", "check_size", "plan_video", "read_image", "read_video"]

Result = TypeVar("Result")

Times = Literal["container", "index"]
"""Seconds of a frame: as the container says, or its index over the frame rate, as the released code counts."""

Transparency = Literal["white", "white_rgba", "drop"]
"""What shows through: white; white in RGBA images alone, as in the Preview (Keye-VL 8B sheet 2.1 item 1); or whatever colour
the transparent pixels have, as in 1.5 and 2.0 (8B sheet 3.2 item 7)."""

_COMPLETE = 0.9
"""Share of the promised duration that must be there; below, a file was cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Decoded pictures of one medium.

    Args:
        runs: Consecutive frames of one size, in the order of time: ``[frames, height, width, 3]`` uint8 RGB each. All frames of
            a medium are one run, unless some are smaller than others (Keye-VL 1.5).
        timestamps: Seconds of each frame since the first frame of the file; empty for an image.
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


class _Missing(Exception):
    """Frames that a container promises are not there; ``seen`` are."""

    def __init__(self, seen: int) -> None:
        super().__init__(seen)
        self.seen = seen


def read_video(
    path: Path,
    sampler: FrameSampler,
    max_pixels: int = 2**26,
    limits: FrameLimits | None = None,
    interpolation: Interpolation = "bicubic",
    times: Times = "container",
) -> Frames:
    """Decode the frames that a sampler chooses, with their times.

    Args:
        path: A video file.
        sampler: Chooses frames and their size.
        max_pixels: Refuse videos whose frames have more pixels, before or after resizing.
        limits: What frames may cost. Frames are resized one by one, so that a long video never stands in memory at its own
            size; ``None`` keeps the size.
        interpolation: How frames are resized.
        times: Whether a frame's second is what the container says, or its index over the frame rate.

    Raises:
        BadData: ``missing_media``, ``broken_media``, ``empty_video`` or ``media_too_large``.
        ValueError: If the sampler cannot keep the limits.
    """

    def read(video: VideoFacts) -> Frames:
        if limits is not None:
            plan = _planned(path, video, sampler, limits, max_pixels)
            return _taken(path, video, plan, interpolation, times)
        indices = tuple(sampler.select(video.num_frames, video.fps))
        own = (video.height, video.width)
        plan = FramePlan(indices=indices, size=own, fps=len(indices) / video.num_frames * video.fps, reason="as it is")
        return _taken(path, video, plan, None, times)

    return _with_promised(path, max_pixels, read)


def plan_video(path: Path, sampler: FrameSampler, limits: FrameLimits, max_pixels: int = 2**26) -> FramePlan:
    """Which frames a sampler chooses in a file, how large they become, and why; decodes no more than the sampler looks at.

    Raises:
        BadData: As :func:`read_video`, as far as it is found without decoding.
        ValueError: If the sampler cannot keep the limits.
    """
    return _with_promised(path, max_pixels, lambda video: _planned(path, video, sampler, limits, max_pixels))


def _with_promised(path: Path, max_pixels: int, action: Callable[[VideoFacts], Result]) -> Result:
    """Do something with a video as its container describes it; if frames are missing, with those that are there."""
    if not _is_file(path):
        raise BadData("missing_media", f"there is no video {path}")
    try:
        video = _promised(path, max_pixels)
        try:
            return action(video)
        except _Missing as missing:
            if not missing.seen:
                raise
            # Frames that an edit list leaves out are promised, too: choose among those that are there.
            _check_duration(path, missing.seen, video.num_frames, video.fps)
            return action(replace(video, num_frames=missing.seen))
    except _Missing as missing:
        message = f"{path} promises more frames than the {missing.seen} that can be decoded"
        raise BadData("broken_media" if missing.seen else "empty_video", message) from None
    except (av.FFmpegError, OSError) as error:
        raise BadData("broken_media", f"{path} cannot be decoded: {error}") from error


def _planned(path: Path, video: VideoFacts, sampler: FrameSampler, limits: FrameLimits, max_pixels: int) -> FramePlan:
    plan = sampler.plan(video, limits, lambda wanted: (picture for picture, _ in _decode(path, wanted, video.fps)))
    check_size(plan.size, max_pixels)
    return plan


def _taken(path: Path, video: VideoFacts, plan: FramePlan, interpolation: Interpolation | None, times: Times) -> Frames:
    """The frames of a plan, at its sizes or, without an interpolation, at their own."""
    pictures, seconds = [], []
    for place, (picture, second) in enumerate(_decode(path, plan.indices, video.fps)):
        if interpolation is not None:
            picture = resize_frames(picture[None], *plan.size_of(place), interpolation)[0]
        pictures.append(picture)
        seconds.append(second if times == "container" else plan.indices[place] / video.fps)
    runs = [
        np.stack([picture for _, picture in run])
        for _, run in groupby(enumerate(pictures), key=lambda entry: bool(plan.fast) and plan.fast[entry[0]])
    ]
    return Frames(runs=tuple(runs), timestamps=tuple(seconds), fps=plan.fps, fast=plan.fast)


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Refuse to make a picture larger than the limit.

    Raises:
        ValueError: If it would be.
    """
    if size[0] * size[1] > max_pixels:
        raise ValueError(f"resizing to {size[0]}x{size[1]} exceeds {max_pixels} pixels: lower min_pixels")


def _promised(path: Path, max_pixels: int) -> VideoFacts:
    """Frames, rate and size by the container's word; packets are counted where it says nothing."""
    with av.open(str(path)) as container:
        stream = _stream(container, path)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            raise BadData("media_too_large", f"{path}: frames of {width}x{height} exceed {max_pixels} pixels")
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if stream.frames > 0 and fps > 0:
            return VideoFacts(num_frames=stream.frames, fps=fps, height=height, width=width)
        times = sorted(
            float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None
        )
    if not times:
        raise BadData("empty_video", f"{path} holds no frame")
    span = times[-1] - times[0]
    fps = (len(times) - 1) / span if span > 0 else 1.0
    _check_duration(path, len(times), len(times), fps)
    return VideoFacts(num_frames=len(times), fps=fps, height=height, width=width)


def _decode(path: Path, wanted: Sequence[int], fps: float) -> Iterator[tuple[np.ndarray, float]]:
    """Wanted pictures with their seconds, in the order of time.

    Raises:
        _Missing: If the file ends before all of them came.
    """
    times_wanted = Counter(wanted)  # a frame may be wanted more than once
    last, origin, seen, found = max(wanted, default=-1), 0.0, 0, 0
    convert = VideoReformatter()  # one for all frames, without threads of its own: several times faster on small clips
    with av.open(str(path)) as container:
        stream = _stream(container, path)
        stream.thread_count = 1  # clips are read by many processes; threads inside each only get in the way
        for index, frame in enumerate(container.decode(stream)):
            seconds = frame.time if frame.time is not None else index / fps
            origin = seconds if index == 0 else origin
            seen = index + 1
            if frame.is_corrupt:
                raise BadData("broken_media", f"{path}: the frame at {seconds - origin:.2f} s is damaged")
            if index in times_wanted:
                picture = convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
                for _ in range(times_wanted[index]):
                    found += 1
                    yield picture, float(seconds - origin)
            if index >= last:
                break
    if not wanted or found < len(wanted):
        raise _Missing(seen)


def _check_duration(path: Path, frames: int, promised: int, fps: float) -> None:
    """Refuse a file that ends long before the time that it promises."""
    with av.open(str(path)) as container:
        stream = _stream(container, path)
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration is not None and len(container.streams) == 1:
            seconds = container.duration / av.time_base
        else:
            seconds = 0.0
    if frames / fps < _COMPLETE * seconds:
        message = f"{path} ends after {frames / fps:.2f} of {seconds:.2f} seconds ({frames} of {promised} frames)"
        raise BadData("broken_media", message)


def _stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise BadData("empty_video", f"{path} has no video stream")
    return container.streams.video[0]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the system refuses, such as one that is too long
        return False


def read_image(path: Path, max_pixels: int = 2**26, transparency: Transparency = "white") -> Frames:
    """Read an image as one RGB frame.

    Args:
        path: An image file.
        max_pixels: Refuse larger images before they are decompressed.
        transparency: See :data:`Transparency`.

    Raises:
        BadData: ``missing_media``, ``broken_media`` or ``media_too_large``.
    """
    if not _is_file(path):
        raise BadData("missing_media", f"there is no image {path}")
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_pixels:
                raise BadData("media_too_large", f"{path}: {image.width}x{image.height} exceeds {max_pixels} pixels")
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
        raise BadData(reason, f"{path} cannot be read: {error}") from error
