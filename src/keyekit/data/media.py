"""Reading images and videos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from keyekit.data.errors import BadData
from keyekit.data.sampling import FrameSampler

__all__ = ["Frames", "read_image", "read_video"]


@dataclass(frozen=True, slots=True)
class Frames:
    """Decoded pictures of one medium.

    Args:
        pixels: ``[frames, height, width, 3]`` uint8 RGB.
        timestamps: Seconds of each frame; empty for an image.
        fps: Frames per second that these frames amount to; 0 for an image.
    """

    pixels: np.ndarray
    timestamps: tuple[float, ...] = ()
    fps: float = 0.0


def read_video(path: Path, sampler: FrameSampler, max_pixels: int = 2**26) -> Frames:
    """Decode the frames that a sampler chooses, with the times the container gives them.

    Args:
        path: A video file.
        sampler: Chooses frames.
        max_pixels: Refuse videos whose frames have more pixels.

    Raises:
        BadData: ``missing_media``, ``broken_media``, ``empty_video`` or ``media_too_large``.
    """
    if not path.is_file():
        raise BadData("missing_media", f"there is no video {path}")
    try:
        with av.open(str(path)) as container:
            return _decode(container, path, sampler, max_pixels)
    except (av.FFmpegError, OSError) as error:
        raise BadData("broken_media", f"{path} cannot be decoded: {error}") from error


def _decode(container: Any, path: Path, sampler: FrameSampler, max_pixels: int) -> Frames:
    if not container.streams.video:
        raise BadData("empty_video", f"{path} has no video stream")
    stream = container.streams.video[0]
    stream.thread_count = 1  # clips are read by many processes; threads inside each only get in the way
    if stream.codec_context.width * stream.codec_context.height > max_pixels:
        raise BadData("media_too_large", f"{path}: frames of {stream.width}x{stream.height} exceed {max_pixels} pixels")
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if stream.frames <= 0 or fps <= 0:
        return _decode_all(container, stream, path, sampler)
    wanted = sampler.select(stream.frames, fps)
    pictures: dict[int, tuple[np.ndarray, float]] = {}
    needed, last = set(wanted), max(wanted, default=-1)
    for index, frame in enumerate(container.decode(stream)):
        if index in needed:
            pictures[index] = frame.to_ndarray(format="rgb24"), frame.time if frame.time is not None else index / fps
        if index >= last:
            break
    missing = needed - pictures.keys()
    if missing or not wanted:
        reason = "broken_media" if pictures else "empty_video"
        raise BadData(reason, f"{path} promises {stream.frames} frames but frame {min(missing, default=0)} is not there")
    return _stacked([pictures[index] for index in wanted], stream.frames, fps)


def _decode_all(container: Any, stream: Any, path: Path, sampler: FrameSampler) -> Frames:
    """For containers that do not say how many frames they hold: count first, then decode the wanted ones."""
    times = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None]
    if not times:
        raise BadData("empty_video", f"{path} holds no frame")
    times.sort()
    span = times[-1] - times[0]
    fps = (len(times) - 1) / span if span > 0 else 1.0
    wanted = set(indices := sampler.select(len(times), fps))
    container.seek(0, stream=stream)
    pictures = {}
    for index, frame in enumerate(container.decode(stream)):
        if index in wanted:
            pictures[index] = frame.to_ndarray(format="rgb24"), frame.time if frame.time is not None else times[index]
    if wanted - pictures.keys():
        raise BadData("broken_media", f"{path}: {len(wanted - pictures.keys())} frames cannot be decoded")
    return _stacked([pictures[index] for index in indices], len(times), fps)


def _stacked(pictures: list[tuple[np.ndarray, float]], num_frames: int, fps: float) -> Frames:
    pixels = np.stack([picture for picture, _ in pictures])
    return Frames(pixels, tuple(float(time) for _, time in pictures), len(pictures) / num_frames * fps)


def read_image(path: Path, max_pixels: int = 2**26) -> Frames:
    """Read an image as one RGB frame; transparency is shown on white (Keye-VL 8B sheet 2.1 item 1).

    Args:
        path: An image file.
        max_pixels: Refuse larger images before they are decompressed.

    Raises:
        BadData: ``missing_media``, ``broken_media`` or ``media_too_large``.
    """
    if not path.is_file():
        raise BadData("missing_media", f"there is no image {path}")
    try:
        with Image.open(path) as image:
            if image.width * image.height > max_pixels:
                raise BadData("media_too_large", f"{path}: {image.width}x{image.height} exceeds {max_pixels} pixels")
            if image.mode == "RGBA":
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return Frames(np.asarray(image.convert("RGB"))[None])
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "media_too_large" if isinstance(error, Image.DecompressionBombError) else "broken_media"
        raise BadData(reason, f"{path} cannot be read: {error}") from error
