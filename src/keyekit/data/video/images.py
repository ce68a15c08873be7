"""A list of images as a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData
from keyekit.data.location import Location
from keyekit.data.processing.resize import Interpolation, resize_frames
from keyekit.data.sampling import VideoFacts
from keyekit.data.video.base import OpenVideo, Size

__all__ = ["ImageList"]


class ImageList(OpenVideo):
    """Images in the order of time, at a constant rate.

    Args:
        images: Where they are.
        fps: Images per second (Keye-VL 8B sheet 2.2 item 5: 2 unless a sample says otherwise).
        read: Reads one as ``[height, width, 3]`` uint8.
        deadline: When reading has taken too long.

    Raises:
        BadData: ``empty_video`` without images; what ``read`` raises for the first one.
    """

    def __init__(
        self, images: Sequence[Location], fps: float, read: Callable[[Location], np.ndarray], deadline: Deadline
    ) -> None:
        if not images:
            raise BadData("empty_video", "a list of frames holds no image")
        if fps <= 0:
            raise ValueError(f"a list of frames has more than 0 images per second, got fps={fps}")
        self._images = images
        self._read = read
        self._deadline = deadline
        height, width, _ = read(images[0]).shape
        super().__init__(
            VideoFacts(num_frames=len(images), fps=fps, height=height, width=width), np.arange(len(images)) / fps
        )

    def decoded(
        self, wanted: Sequence[int], sizes: Sequence[Size | None], interpolation: Interpolation
    ) -> Iterator[np.ndarray]:
        """See :class:`OpenVideo`; images of other sizes than the first become as large as it."""
        own = (self.facts.height, self.facts.width)
        for index, size in zip(wanted, sizes, strict=True):
            self._deadline.check()
            yield resize_frames(self._read(self._images[index])[None], *(size or own), interpolation)[0]
