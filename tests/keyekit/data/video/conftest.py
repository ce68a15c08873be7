"""Clips of every kind, whose pictures tell their own number, and the naive way to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

TICK = Fraction(1, 1000)
Encode = Callable[..., Path]


def numbered(number: int, height: int, width: int) -> np.ndarray:
    """A picture with its number in twelve black or white squares, above a texture that moves."""
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([(rows * 3 + number * 7) % 256, (columns * 2) % 256, (rows + columns + number) % 256], axis=-1)
    for bit in range(12):
        top, left = 16 * (bit // 6), 16 * (bit % 6)
        picture[top : top + 16, left : left + 16] = 255 * (number >> bit & 1)
    return picture.astype(np.uint8)


@pytest.fixture(scope="session")
def encode(tmp_path_factory: pytest.TempPathFactory) -> Encode:
    """Write a clip: ``encode(name, frames, codec=…, times=…, rotation=…, **options of the encoder)``."""
    folder = tmp_path_factory.mktemp("clips")

    def write(
        name: str,
        frames: int,
        codec: str = "libx264",
        times: Sequence[int] | None = None,
        rotation: int = 0,
        size: tuple[int, int] = (64, 112),
        **options: str,
    ) -> Path:
        path = folder / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options=options)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.thread_count = 1
            stream.codec_context.time_base = TICK if times is not None else Fraction(1, 25)
            if rotation:
                stream.set_display_rotation(rotation)
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(numbered(number, *size), format="rgb24")
                frame.time_base = stream.codec_context.time_base
                frame.pts = number if times is None else times[number]
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def sequential() -> Callable[[Path], tuple[list[np.ndarray], list[float]]]:
    """Every picture of a file in order, with its seconds since the first, by plain decoding."""

    def read(path: Path) -> tuple[list[np.ndarray], list[float]]:
        pictures, seconds = [], []
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                pictures.append(frame.to_ndarray(format="rgb24"))
                seconds.append(frame.time or 0.0)
        return pictures, [second - seconds[0] for second in seconds]

    return read


@pytest.fixture
def number_of() -> Callable[[np.ndarray], int]:
    """The number that a picture of the original size tells."""

    def read(picture: np.ndarray) -> int:
        centres = [picture[16 * (bit // 6) + 8, 16 * (bit % 6) + 8].mean() for bit in range(12)]
        return sum(int(centre > 127) << bit for bit, centre in enumerate(centres))

    return read
