"""Videos decoded by torchcodec, an optional second reader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData
from keyekit.data.location import Location, opened_video
from keyekit.data.processing.resize import Interpolation, resize_frames
from keyekit.data.video.base import OpenVideo, Size, VideoReader
from keyekit.data.video.pyav import PyAV, PyAVVideo

__all__ = ["TorchCodec", "TorchCodecVideo"]

_AT_ONCE = 32
"""Frames that are decoded in one call: memory is that of so many at the most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchCodec(VideoReader):
    """The decoder of ``pip install torchcodec``, which needs the shared libraries of FFmpeg on the system.

    Which frames there are, and when, :class:`~keyekit.data.video.pyav.PyAV` finds out; pictures come from torchcodec.
    A time limit is looked at every 32 frames.

    Args:
        threads: Threads of a decoder; with 0 FFmpeg decides, which is slow where several processes decode.

    Raises:
        ImportError: When a video is opened and torchcodec cannot be used, with what it says is missing.
    """

    threads: int = 1

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"need threads >= 0, got {self.threads}")

    def open(self, location: Location, max_pixels: int, deadline: Deadline, scan: bool = False) -> TorchCodecVideo:
        """See :class:`VideoReader`."""
        decoders = _decoders()
        known = PyAV().open(location, max_pixels, deadline, scan)
        return TorchCodecVideo(known, decoders, self.threads, location, deadline)


class TorchCodecVideo(OpenVideo):
    """A video that torchcodec decodes; made by :class:`TorchCodec`.

    Args:
        known: The same video, open with PyAV.
        decoders: The module ``torchcodec.decoders``.
        threads: Threads of a decoder.
        location: Where it lies.
        deadline: When reading has taken too long.
    """

    def __init__(self, known: PyAVVideo, decoders: Any, threads: int, location: Location, deadline: Deadline) -> None:
        super().__init__(known.facts, known.seconds)
        self._known = known
        self._decoders = decoders
        self._threads = threads
        self._location = location
        self._deadline = deadline

    def close(self) -> None:
        """See :class:`OpenVideo`."""
        self._known.close()

    def decoded(
        self, wanted: Sequence[int], sizes: Sequence[Size | None], interpolation: Interpolation
    ) -> Iterator[np.ndarray]:
        """See :class:`OpenVideo`; torchcodec resizes bilinearly itself, anything else is left to Pillow."""
        own = (self.facts.height, self.facts.width)
        alike = len(set(sizes)) == 1 and interpolation == "bilinear"
        with opened_video(self._location, self._deadline) as source, _as_bad_data(self._location):
            decoder = self._decoder(source, sizes[0] if alike and sizes[0] != own else None)
            origin = float(decoder.get_frame_at(0).pts_seconds)
            for start in range(0, len(wanted), _AT_ONCE):
                self._deadline.check()
                several = list(wanted[start : start + _AT_ONCE])
                batch = decoder.get_frames_at(several)
                self._check_times(several, batch.pts_seconds.numpy() - origin)
                for size, picture in zip(sizes[start : start + _AT_ONCE], batch.data.numpy(), strict=True):
                    yield resize_frames(picture[None], *(size or own), interpolation)[0]

    def _decoder(self, source: Any, size: Size | None) -> Any:
        transforms = None
        if size is not None:
            from torchvision.transforms import v2

            transforms = [v2.Resize(size)]
        return self._decoders.VideoDecoder(
            source, dimension_order="NHWC", num_ffmpeg_threads=self._threads, transforms=transforms
        )

    def _check_times(self, wanted: list[int], seconds: np.ndarray) -> None:
        """Refuse a frame that is not the one that was meant."""
        apart = np.abs(seconds - self.seconds[wanted])
        if apart.max() > 0.5 / self.facts.fps:
            place = int(apart.argmax())
            raise BadData(
                "broken_media",
                f"{self._location}: torchcodec shows frame {wanted[place]} at {seconds[place]:.2f} s, the container says "
                f"{self.seconds[wanted[place]]:.2f} s",
            )


def _decoders() -> Any:
    try:
        from torchcodec import decoders
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(f"video_reader=TorchCodec needs torchcodec and FFmpeg, or take PyAV: {error}") from error
    return decoders


@contextmanager
def _as_bad_data(location: Location) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # also what torch raises where a library of FFmpeg is missing
        if "libtorchcodec" in str(error):
            raise ImportError(f"video_reader=TorchCodec needs torchcodec and FFmpeg, or take PyAV: {error}") from error
        raise BadData("broken_media", f"{location} cannot be decoded: {error}") from error
    except (RuntimeError, IndexError) as error:
        if "libtorchcodec" in str(error):
            raise ImportError(f"video_reader=TorchCodec needs torchcodec and FFmpeg, or take PyAV: {error}") from error
        raise BadData("broken_media", f"{location} cannot be decoded: {error}") from error
