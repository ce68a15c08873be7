"""Videos decoded by FFmpeg through PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import Interpolation as Scaler
from av.video.reformatter import VideoReformatter

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData
from keyekit.data.location import Location, opened_video
from keyekit.data.processing.resize import Interpolation
from keyekit.data.sampling import VideoFacts
from keyekit.data.video.base import MissingFrames, OpenVideo, Size, VideoReader
from keyekit.data.video.route import SEEK_COST, Stretch, route
from keyekit.data.video.table import FrameTable

__all__ = ["PyAV", "PyAVVideo"]

_CAREFUL = int(Scaler.ACCURATE_RND | Scaler.FULL_CHR_H_INT)  # without, colours are made for every other column only
_SCALERS = {"bicubic": int(Scaler.BICUBIC) | _CAREFUL, "bilinear": int(Scaler.BILINEAR) | _CAREFUL}
_TELLS_DISPENSABLE = ("h264",)
"""Codecs whose packets say when no other picture refers to them (H.264: nal_ref_idc 0): the decoder may leave those out."""
_FOUND_BY_DECODING_TIME = ("mpegts", "mpeg")
"""Containers without an index: a jump searches packets by the time of decoding, not of showing."""

# Titles that are no UTF-8 say nothing about the frames. PyAV 19 decodes them on demand, those before when a file is opened.
_ANY_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class PyAV(VideoReader):
    """FFmpeg through PyAV; every installation has it.

    Args:
        threads: Threads of a decoder. One is best where several processes decode; more make a single file faster, up to the
            cores there are, and cost memory for as many pictures.
        seek_cost: What a jump to a keyframe costs, in frames decoded; see :func:`keyekit.data.video.route.route`.
    """

    threads: int = 1
    seek_cost: int = SEEK_COST

    def __post_init__(self) -> None:
        if self.threads < 1 or self.seek_cost < 0:
            raise ValueError(f"need threads >= 1 and seek_cost >= 0, got {self.threads} and {self.seek_cost}")

    def open(self, location: Location, max_pixels: int, deadline: Deadline, scan: bool = False) -> PyAVVideo:
        """See :class:`VideoReader`."""
        with ExitStack() as stack:
            stack.enter_context(as_bad_data(location, deadline))
            source = stack.enter_context(opened_video(location, deadline))
            owned = stack.enter_context(ExitStack())

            def again() -> tuple[Any, Any]:
                owned.close()
                if not isinstance(source, str):
                    source.seek(0)
                return self._opened(owned, source, location, deadline)

            container, stream = again()
            check_pixels(location, stream.codec_context, max_pixels)
            table, fps = frame_table(container, stream, location, deadline, scan)
            video = PyAVVideo(container, stream, table, fps, location, deadline, self.seek_cost, again)
            video.resources = stack.pop_all()
        return video

    def _opened(self, stack: ExitStack, source: Any, location: Location, deadline: Deadline) -> tuple[Any, Any]:
        waits = (deadline.left, deadline.left)
        container = stack.enter_context(av.open(source, timeout=waits, **_ANY_METADATA))
        stream = _stream(container, location)
        stream.codec_context.thread_count = self.threads
        stream.codec_context.thread_type = "AUTO" if self.threads > 1 else "SLICE"
        return container, stream


class PyAVVideo(OpenVideo):
    """A container that is open; made by :class:`PyAV`.

    Args:
        container: It.
        stream: Its video stream.
        table: The frames of the stream.
        fps: Its frames per second.
        location: Where it lies.
        deadline: When reading has taken too long.
        seek_cost: What a jump costs, in frames decoded.
        again: Opens the file anew, for streams in which nothing can be searched.
    """

    def __init__(
        self,
        container: Any,
        stream: Any,
        table: FrameTable,
        fps: float,
        location: Location,
        deadline: Deadline,
        seek_cost: int,
        again: Callable[[], tuple[Any, Any]],
    ) -> None:
        self.resources = ExitStack()
        self._container = container
        self._stream = stream
        self._table = table
        self._location = location
        self._deadline = deadline
        self._seek_cost = seek_cost
        self._again = again
        self._scalers: dict[Size | None, VideoReformatter] = {}
        first = self._first()
        self._quarters = round(first.rotation / 90) % 4
        height, width = (first.height, first.width) if self._quarters % 2 == 0 else (first.width, first.height)
        super().__init__(VideoFacts(num_frames=len(table), fps=fps, height=height, width=width), table.seconds)

    def close(self) -> None:
        """See :class:`OpenVideo`."""
        self._scalers.clear()
        self.resources.close()

    def decoded(
        self, wanted: Sequence[int], sizes: Sequence[Size | None], interpolation: Interpolation
    ) -> Iterator[np.ndarray]:
        """See :class:`OpenVideo`."""
        size_of = dict(zip(wanted, sizes, strict=True))
        with as_bad_data(self._location, self._deadline):
            for index, frame in self._found(wanted):
                yield self._picture(frame, size_of[index], interpolation)

    def _found(self, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
        if not self._table.timed:
            yield from self._counted(wanted)
            return
        for stretch in route(self._table, wanted, self._seek_cost):
            yield from self._stretch(stretch)

    def _stretch(self, stretch: Stretch) -> Iterator[tuple[int, Any]]:
        """The frames of a stretch; from an earlier keyframe where this one did not lead to the first of them."""
        left = list(stretch.frames)
        entry_ticks = stretch.entry_ticks
        while left:
            for index, frame in self._from(entry_ticks, tuple(left)):
                yield index, frame
                left.pop(0)
            if not left:
                return
            if entry_ticks is None or len(left) < len(stretch.frames):
                raise MissingFrames(left[0])
            place, ticks = self._table.before(left[0])
            entry_ticks = ticks if place > 0 and ticks < entry_ticks else None

    def _from(self, entry_ticks: int | None, frames: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Decode from a keyframe (``None``: from the start) until all of some frames came, or one did not."""
        ticks = self._table.ticks[list(frames)].tolist()
        place = 0
        for frame in self._decode(entry_ticks, set(ticks)):
            if frame.pts == ticks[place]:
                yield frames[place], frame
                place += 1
            elif frame.pts > ticks[place]:
                return
            if place == len(frames):
                return

    def _decode(self, entry_ticks: int | None, wanted: set[int]) -> Iterator[Any]:
        context = self._stream.codec_context
        dispensable = context.name in _TELLS_DISPENSABLE
        self._seek(entry_ticks)
        entered = False
        for packet in self._container.demux(self._stream):
            self._deadline.check()
            entered = entered or packet.is_keyframe
            if not entered and packet.size:
                continue  # a jump may end between keyframes: without one, pictures would be guessed
            if dispensable:
                context.skip_frame = "NONREF" if packet.size and packet.pts not in wanted else "DEFAULT"
            for frame in packet.decode():
                self._check_whole(frame)
                yield frame

    def _counted(self, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Packets without times: all frames are decoded and counted."""
        self._seek(None)
        due, seen = set(wanted), 0
        for packet in self._container.demux(self._stream):
            self._deadline.check()
            for frame in packet.decode():
                self._check_whole(frame)
                if seen in due:
                    yield seen, frame
                seen += 1
                if seen > wanted[-1]:
                    return
        raise MissingFrames(seen)

    def _first(self) -> Any:
        """The first picture, which says how large pictures are and how they are turned."""
        if not len(self._table):
            raise BadData("empty_video", f"{self._location} holds no frame")
        for frame in self._decode(None, {int(self._table.ticks[0])}):
            return frame
        raise MissingFrames(0)

    def _seek(self, ticks: int | None) -> None:
        if self._table.timed:
            ticks = int(self._table.entry_ticks[0]) if ticks is None else ticks
            self._container.seek(ticks, stream=self._stream, backward=True)
        else:
            self._container, self._stream = self._again()
        self._stream.codec_context.skip_frame = "DEFAULT"

    def _check_whole(self, frame: Any) -> None:
        if frame.is_corrupt:
            second = "" if frame.time is None else f" at {frame.time:.2f} s"
            raise BadData("broken_media", f"{self._location}: the frame{second} is damaged")

    def _picture(self, frame: Any, size: Size | None, interpolation: Interpolation) -> np.ndarray:
        """A decoded picture as RGB, upright, in one step also of its final size."""
        if size is not None and self._quarters % 2:
            size = (size[1], size[0])
        if size == (frame.height, frame.width):
            size = None
        scaler = self._scalers.setdefault(size, VideoReformatter())  # one for each size: setting one up costs
        if size is None:
            picture = scaler.reformat(frame, format="rgb24", threads=1)
        else:
            picture = scaler.reformat(
                frame, width=size[1], height=size[0], format="rgb24", interpolation=_SCALERS[interpolation], threads=1
            )
        pixels = picture.to_ndarray()
        return np.ascontiguousarray(np.rot90(pixels, self._quarters)) if self._quarters else pixels


def frame_table(
    container: Any, stream: Any, location: Location, deadline: Deadline, scan: bool
) -> tuple[FrameTable, float]:
    """The frames of a stream and their rate: from the index of the container where that is enough, else from all packets.

    Raises:
        BadData: If there is no frame, or the file ends long before the time that it promises.
    """
    fps = float(stream.average_rate or stream.guessed_rate or 0)
    if not scan and stream.frames > 0 and fps > 0:
        table = _of_index(container, stream)
        if table is not None:
            return table, fps
    ticks: list[int | None] = []
    decoding: list[int] = []
    keys: list[bool] = []
    hidden: list[bool] = []
    for packet in container.demux(stream):
        deadline.check()
        if packet.size:
            ticks.append(packet.pts)
            decoding.append(packet.dts if packet.dts is not None else packet.pts or 0)
            keys.append(packet.is_keyframe)
            hidden.append(packet.is_discard)
    told = [tick for tick in ticks if tick is not None]
    if len(told) == len(ticks):
        found = decoding if container.format.name in _FOUND_BY_DECODING_TIME else None
        table = FrameTable.of_packets(told, keys, hidden, _tick(stream), found)
        fps = fps if stream.frames == len(table) and fps > 0 else table.fps
    else:
        table = FrameTable.counted(len(ticks), fps or 1.0)
        fps = fps or 1.0
    if not ticks:
        raise BadData("empty_video", f"{location} holds no frame")
    if not len(table):
        raise BadData("broken_media", f"{location} holds no frame that decoding could begin at")
    _check_duration(container, stream, location, len(ticks), fps)
    return table, fps


def _of_index(container: Any, stream: Any) -> FrameTable | None:
    if "mp4" not in container.format.name.split(","):
        return None  # elsewhere the index names keyframes alone, or the first frame is not shown at the start of the stream
    entries = getattr(stream, "index_entries", None)  # PyAV has them since 17
    if entries is None or len(entries) != stream.frames or stream.start_time is None:
        return None
    every = list(entries)
    if any(entry.is_discard for entry in every):
        return None
    times = [entry.timestamp for entry in every]
    return FrameTable.of_index(times, [entry.is_keyframe for entry in every], stream.start_time, _tick(stream))


_COMPLETE = 0.9
"""Share of the promised duration that must be there; below, a file was cut off."""


def _check_duration(container: Any, stream: Any, location: Location, frames: int, fps: float) -> None:
    """Refuse a file that ends long before the time that it promises."""
    if stream.duration is not None and stream.time_base is not None:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        seconds = container.duration / av.time_base
    else:
        return
    if frames / fps < _COMPLETE * seconds:
        message = f"{location} ends after {frames / fps:.2f} of {seconds:.2f} seconds ({frames} frames)"
        raise BadData("broken_media", message)


def check_pixels(location: Location, context: Any, max_pixels: int) -> None:
    """Refuse frames that are too large.

    Raises:
        BadData: ``media_too_large``.
    """
    if context.width * context.height > max_pixels:
        message = f"{location}: frames of {context.width}x{context.height} exceed {max_pixels} pixels"
        raise BadData("media_too_large", message)


def _stream(container: Any, location: Location) -> Any:
    if not container.streams.video:
        others = ", ".join(dict.fromkeys(stream.type for stream in container.streams)) or "nothing"
        raise BadData("empty_video", f"{location} has no video stream; it holds {others}")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise BadData("broken_media", f"{location} is encoded in a way that no decoder knows")
    return stream


def _tick(stream: Any) -> float:
    return float(stream.time_base)


@contextmanager
def as_bad_data(location: Location, deadline: Deadline) -> Iterator[None]:
    """What FFmpeg says as an error of the sample."""
    try:
        yield
    except av.error.ExitError as error:  # FFmpeg's word for a wait that was ended
        raise deadline.exceeded() from error
    except (av.error.HTTPNotFoundError, av.error.HTTPForbiddenError) as error:
        raise BadData("missing_media", f"{location} cannot be fetched: {error}") from error
    except (av.FFmpegError, OSError) as error:
        if deadline.passed:
            raise deadline.exceeded() from error
        raise BadData("broken_media", f"{location} cannot be decoded: {error}") from error
