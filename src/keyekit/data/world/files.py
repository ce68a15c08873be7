"""Write media files and manifests: H.264 clips through PyAV, PNG and JPEG images, JSON that is never half there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

try:
    import fcntl
except ImportError:  # Windows has no locks of this kind: there, two builds of one folder at once are not guarded
    fcntl = None

__all__ = ["locked", "write_image", "write_json", "write_lines", "write_video"]


def write_video(path: Path, frames: np.ndarray, fps: float, crf: int = 18) -> None:
    """Encode frames as H.264 (yuv420p) in an MP4 file. The same frames give the same bytes.

    Args:
        path: File to write, ending in ``.mp4``.
        frames: ``[F, H, W, 3]`` uint8 RGB; height and width even.
        fps: Frames per second.
        crf: Constant rate factor of x264, 0 (lossless) to 51; 18 keeps the colours of small objects.

    Raises:
        ValueError: If there is no frame or a side is odd, which yuv420p cannot hold.
    """
    if frames.ndim != 4 or frames.shape[0] == 0 or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"a clip needs frames [F >= 1, even H, even W, 3], got shape {list(frames.shape)}")
    # One thread and one keyframe: clips are so short that threads and look-ahead cost more than they give.
    options = {"preset": "ultrafast", "crf": str(crf), "g": str(len(frames))}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_image(path: Path, pixels: np.ndarray) -> None:
    """Save an image as PNG or JPEG, by the ending of the path.

    Args:
        path: File to write, ending in ``.png`` or ``.jpg``.
        pixels: ``[H, W, 3]`` uint8 RGB.
    """
    image = Image.fromarray(pixels)
    if path.suffix == ".png":
        image.save(path, compress_level=1)
    else:
        image.save(path, quality=95, subsampling=0)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either the old one or the complete new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def write_lines(path: Path, objects: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line and return how many there were."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for value in objects:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1
    return count


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file, so that two processes do not build the same folder at once."""
    with path.open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
