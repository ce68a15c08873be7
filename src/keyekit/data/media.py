"""Reading images and videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from keyekit.data.errors import BadData
from keyekit.data.processing.resize import resize_frames
from keyekit.data.sampling import FrameSampler

__all__ = ["Frames", "read_image", "read_video"]

_COMPLETE = 0.9
"""Share of the promised duration that must be there; below, a file was cut off."""


@dataclass(frozen=True, slots=True)
class Frames:
    """Decoded pictures of one medium.

    Args:
        pixels: ``[frames, height, width, 3]`` uint8 RGB.
        timestamps: Seconds of each frame since the first frame of the file; empty for an image.
        fps: Frames per second that these frames amount to; 0 for an image.
    """

    pixels: np.ndarray
    timestamps: tuple[float, ...] = ()
    fps: float = 0.0


def read_video(
    path: Path,
    sampler: FrameSampler,
    max_pixels: int = 2**26,
    size: Callable[[int, int, int], tuple[int, int]] | None = None,
) -> Frames:
    """Decode the frames that a sampler chooses, with the times the container gives them.

    Args:
        path: A video file.
        sampler: Chooses frames.
        max_pixels: Refuse videos whose frames have more pixels.
        size: Says the final height and width from the height and width of the source and the number of chosen frames. Frames
            are resized one by one, so that a long video never stands in memory at its own size; ``None`` keeps the size.

    Raises:
        BadData: ``missing_media``, ``broken_media``, ``empty_video`` or ``media_too_large``.
    """
    if not _is_file(path):
        raise BadData("missing_media", f"there is no video {path}")
    try:
        count, fps = _promised(path, max_pixels)
        pictures, seen = _decode(path, sampler.select(count, fps), fps, size)
        if pictures is None and seen:
            # Frames that an edit list leaves out are promised, too: choose among those that are there.
            _check_duration(path, seen, count, fps)
            count = seen
            pictures, seen = _decode(path, sampler.select(count, fps), fps, size)
    except (av.FFmpegError, OSError) as error:
        raise BadData("broken_media", f"{path} cannot be decoded: {error}") from error
    if pictures is None:
        raise BadData(
            "broken_media" if seen else "empty_video", f"{path} promises {count} frames, {seen} can be decoded"
        )
    pixels = np.stack([picture for picture, _ in pictures])
    return Frames(pixels, tuple(time for _, time in pictures), len(pictures) / count * fps)


def _promised(path: Path, max_pixels: int) -> tuple[int, float]:
    """Number of frames and frames per second by the container's word, or by counting packets where it says nothing."""
    with av.open(str(path)) as container:
        stream = _stream(container, path)
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > max_pixels:
            raise BadData("media_too_large", f"{path}: frames of {width}x{height} exceed {max_pixels} pixels")
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if stream.frames > 0 and fps > 0:
            return stream.frames, fps
        times = sorted(
            float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None
        )
    if not times:
        raise BadData("empty_video", f"{path} holds no frame")
    span = times[-1] - times[0]
    fps = (len(times) - 1) / span if span > 0 else 1.0
    _check_duration(path, len(times), len(times), fps)
    return len(times), fps


def _decode(
    path: Path, wanted: Sequence[int], fps: float, size: Callable[[int, int, int], tuple[int, int]] | None
) -> tuple[list[tuple[np.ndarray, float]] | None, int]:
    """Wanted pictures with their seconds, or ``None`` if some are not there, and the number of frames that were seen."""
    pictures: dict[int, tuple[np.ndarray, float]] = {}
    needed, last, origin, seen = set(wanted), max(wanted, default=-1), 0.0, 0
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
            if index in needed:
                picture = convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
                if size is not None:
                    height, width, _ = picture.shape
                    picture = resize_frames(picture[None], *size(height, width, len(wanted)))[0]
                pictures[index] = picture, float(seconds - origin)
            if index >= last:
                break
    complete = bool(wanted) and needed <= pictures.keys()
    return [pictures[index] for index in wanted] if complete else None, seen


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


def read_image(path: Path, max_pixels: int = 2**26) -> Frames:
    """Read an image as one RGB frame; transparency is shown on white (Keye-VL 8B sheet 2.1 item 1).

    Args:
        path: An image file.
        max_pixels: Refuse larger images before they are decompressed.

    Raises:
        BadData: ``missing_media``, ``broken_media`` or ``media_too_large``.
    """
    if not _is_file(path):
        raise BadData("missing_media", f"there is no image {path}")
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_pixels:
                raise BadData("media_too_large", f"{path}: {image.width}x{image.height} exceeds {max_pixels} pixels")
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return Frames(np.asarray(image.convert("RGB"))[None])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "media_too_large" if isinstance(error, Image.DecompressionBombError) else "broken_media"
        raise BadData(reason, f"{path} cannot be read: {error}") from error
