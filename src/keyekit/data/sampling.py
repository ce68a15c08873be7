"""Which frames of a video are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

__all__ = ["FrameSampler", "UniformFps"]


class FrameSampler(ABC):
    """Base of the samplers: chooses frames from what the container says about a video."""

    @abstractmethod
    def select(self, num_frames: int, fps: float) -> list[int]:
        """Choose frames.

        Args:
            num_frames: Frames in the video.
            fps: Its frames per second.

        Returns:
            Ascending frame indices; frames may repeat in very short videos.
        """

    def adapted(self, options: dict[str, Any]) -> FrameSampler:
        """The sampler for a video that brings options of its own, such as ``fps``.

        Raises:
            ValueError: If an option is not understood.
        """
        if options:
            raise ValueError(f"{type(self).__name__} takes no options from a sample, got {', '.join(options)}")
        return self


class UniformFps(FrameSampler):
    """Evenly spaced frames at a wanted rate, between a smallest and a largest number (Keye-VL 8B sheet 2.2 items 2 and 3).

    Args:
        fps: Wanted frames per second.
        min_frames: Fewest frames.
        max_frames: Most frames.

    Example:
        >>> UniformFps(fps=2.0, min_frames=4, max_frames=8).select(num_frames=16, fps=4.0)
        [0, 2, 4, 6, 9, 11, 13, 15]
    """

    def __init__(self, fps: float = 2.0, min_frames: int = 4, max_frames: int = 768) -> None:
        if fps <= 0 or not 1 <= min_frames <= max_frames:
            raise ValueError(f"need fps > 0 and 1 <= min_frames <= max_frames, got {fps}, {min_frames}, {max_frames}")
        self.fps = fps
        self.min_frames = min_frames
        self.max_frames = max_frames

    def select(self, num_frames: int, fps: float) -> list[int]:
        """See :class:`FrameSampler`."""
        wanted = num_frames / fps * self.fps
        count = min(max(wanted, self.min_frames), self.max_frames, num_frames)
        count = max(int(count) // 2 * 2, min(2, num_frames))  # sheet 2.2: FRAME_FACTOR 2, floor to even
        return np.linspace(0, num_frames - 1, count).round().astype(int).tolist()

    def adapted(self, options: dict[str, Any]) -> UniformFps:
        """See :class:`FrameSampler`; understands ``fps``, ``min_frames``, ``max_frames`` or, instead of them, ``nframes``."""
        own = {"fps": self.fps, "min_frames": self.min_frames, "max_frames": self.max_frames}
        unknown = options.keys() - own.keys() - {"nframes"}
        if unknown:
            raise ValueError(
                f"unknown video option {', '.join(sorted(unknown))}: a sample may set {', '.join(own)}, nframes"
            )
        if "nframes" in options:
            if len(options) > 1:
                raise ValueError(
                    f"nframes and {', '.join(sorted(options.keys() - {'nframes'}))} together contradict: give one"
                )
            count = max(round(options["nframes"] / 2) * 2, 2)  # Keye-VL 8B sheet 2.2 item 2: rounded to even
            own |= {"min_frames": count, "max_frames": count}
            return UniformFps(**own)
        return UniformFps(**(own | options)) if options else self
