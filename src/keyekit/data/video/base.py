"""What every decoder of videos offers: a file is opened, says what it holds, and hands out wanted frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np

from keyekit.data.deadline import Deadline
from keyekit.data.location import Location
from keyekit.data.processing.resize import Interpolation, resize_frames
from keyekit.data.sampling import VideoFacts

__all__ = ["MissingFrames", "OpenVideo", "Resizing", "Size", "VideoReader"]

Resizing = Literal["fused", "exact"]
"""``fused``: the decoder's scaler turns a decoded picture into RGB of the wanted size in one step. ``exact``: RGB at its own
size first, then Pillow, bit for bit what the released processors do, at several times the cost."""

Size = tuple[int, int]
"""Height and width in pixels."""


class MissingFrames(Exception):
    """A frame that a container promises is not there.

    Args:
        index: Which.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


class OpenVideo(AbstractContextManager, ABC):
    """A video that is open for reading; closes as a context.

    Args:
        facts: What is known about it.
        seconds: ``[frames]`` float64: when each frame is shown, since the first one.
    """

    def __init__(self, facts: VideoFacts, seconds: np.ndarray) -> None:
        self.facts = facts
        self.seconds = seconds

    @abstractmethod
    def decoded(
        self, wanted: Sequence[int], sizes: Sequence[Size | None], interpolation: Interpolation
    ) -> Iterator[np.ndarray]:
        """Decode frames.

        Args:
            wanted: Frames, ascending, none twice.
            sizes: For each its height and width; ``None`` keeps its own.
            interpolation: How pixels between the given ones are made.

        Yields:
            ``[height, width, 3]`` uint8 RGB, one for each wanted frame.

        Raises:
            BadData: If the file is damaged, or takes too long.
            MissingFrames: If a frame is not there.
        """

    def frames(
        self,
        indices: Sequence[int],
        sizes: Sequence[Size] | None = None,
        interpolation: Interpolation = "bicubic",
        resizing: Resizing = "fused",
    ) -> Iterator[np.ndarray]:
        """Wanted pictures one after the other, so that a long video never stands in memory.

        Args:
            indices: Frames, ascending; a frame may come more than once.
            sizes: Height and width for each of them; ``None`` keeps their own.
            interpolation: How they are resized.
            resizing: See :data:`Resizing`.

        Yields:
            ``[height, width, 3]`` uint8 RGB.

        Raises:
            BadData: If the file is damaged, or takes too long.
            MissingFrames: If a frame is not there.
        """
        if not len(indices):
            return
        places = [place for place, index in enumerate(indices) if place == 0 or index != indices[place - 1]]
        wanted = [indices[place] for place in places]
        fused = [sizes[place] if sizes is not None and resizing == "fused" else None for place in places]
        counts = [after - place for place, after in zip(places, [*places[1:], len(indices)], strict=True)]
        for place, count, picture in zip(places, counts, self.decoded(wanted, fused, interpolation), strict=True):
            for copy in range(place, place + count):
                if sizes is None:
                    yield picture
                else:
                    yield resize_frames(picture[None], *sizes[copy], interpolation)[0]

    def close(self) -> None:
        """Give back what the decoder holds."""

    def __exit__(self, *_: object) -> None:
        self.close()


class VideoReader(ABC):
    """Base of the decoders."""

    @abstractmethod
    def open(self, location: Location, max_pixels: int, deadline: Deadline, scan: bool = False) -> OpenVideo:
        """Open a video.

        Args:
            location: Where it is.
            max_pixels: Refuse frames with more pixels before any is decoded.
            deadline: When reading has taken too long.
            scan: Whether to trust no index and read all packets to find out which frames there are.

        Raises:
            BadData: ``missing_media``, ``broken_media``, ``empty_video``, ``media_too_large`` or ``timed_out``.
        """
