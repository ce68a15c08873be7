"""Which frames of a video are read, and at which size."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from keyekit.data.processing.budget import even_share
from keyekit.data.processing.geometry import KEYE_PATCHES, PatchGeometry
from keyekit.data.processing.resize import smart_resize

__all__ = ["FrameLimits", "FramePlan", "FrameSampler", "Look", "UniformFps", "VideoFacts"]

Look = Callable[[Sequence[int]], Iterator[np.ndarray]]
"""Decodes frames by their indices, one after the other: ``[height, width, 3]`` uint8 RGB at the size of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFacts:
    """What is known about a video before its frames are chosen.

    Args:
        num_frames: Frames in the file.
        fps: Its frames per second.
        height: Height of a frame in pixels.
        width: Width of a frame in pixels.
    """

    num_frames: int
    fps: float
    height: int
    width: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_frames / self.fps


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLimits:
    """What frames may cost.

    Args:
        min_pixels: Fewest pixels of a frame.
        max_pixels: Most pixels of a frame.
        total_pixels: Most pixels of all frames together.
        num_videos: Videos that the budget was divided among.
        geometry: Patches of a token.
    """

    min_pixels: float
    max_pixels: float
    total_pixels: float
    num_videos: int = 1
    geometry: PatchGeometry = KEYE_PATCHES

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels or self.total_pixels <= 0:
            raise ValueError(
                f"a frame needs 0 < min_pixels <= max_pixels, got {self.min_pixels} and {self.max_pixels}; a video needs a "
                f"budget above 0, got {self.total_pixels} pixels"
            )

    @classmethod
    def of_tokens(cls, lowest: int, highest: int, total: int, geometry: PatchGeometry = KEYE_PATCHES) -> FrameLimits:
        """Limits in decoder tokens instead of pixels."""
        pixels = geometry.token_pixels
        return cls(
            min_pixels=lowest * pixels, max_pixels=highest * pixels, total_pixels=total * pixels, geometry=geometry
        )

    def resized(
        self, video: VideoFacts, max_pixels: float | None = None, min_pixels: float | None = None
    ) -> tuple[int, int]:
        """Height and width of a frame within these limits, or within others that a policy found."""
        lowest = self.min_pixels if min_pixels is None else min_pixels
        highest = self.max_pixels if max_pixels is None else max_pixels
        return smart_resize(video.height, video.width, lowest, highest, factor=self.geometry.token_side)


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePlan:
    """Which frames are read and how large they become.

    Args:
        indices: Frames, ascending.
        size: Height and width in pixels.
        fps: Frames per second that the chosen frames amount to.
        reason: How the numbers came about, for people.
        fast: For each frame whether it has the smaller size; empty if none has.
        fast_size: The smaller size; ``(0, 0)`` if no frame has it.
        seconds: When each frame is shown, by the clock of whoever reads the file; empty while nobody has.
    """

    indices: tuple[int, ...]
    size: tuple[int, int]
    fps: float
    reason: str
    fast: tuple[bool, ...] = ()
    fast_size: tuple[int, int] = (0, 0)
    seconds: tuple[float, ...] = ()

    def size_of(self, place: int) -> tuple[int, int]:
        """Height and width of a chosen frame by its place."""
        return self.fast_size if self.fast and self.fast[place] else self.size

    def timestamps(self, fps: float) -> tuple[float, ...]:
        """Seconds of the frames in a video of a constant rate, as the released code counts them: index over rate."""
        return tuple(index / fps for index in self.indices)

    def tokens(self, geometry: PatchGeometry = KEYE_PATCHES) -> int:
        """Decoder tokens of all frames."""
        return sum(geometry.tokens(*self.size_of(place)) for place in range(len(self.indices)))


class FrameSampler(ABC):
    """Base of the samplers: chooses frames from what the container says about a video, and their size from the limits.

    A sub-class has to say which frames. One that wants a say in sizes, or has to see the frames first, overrides
    :meth:`plan`, too.
    """

    firm_minimum: ClassVar[bool] = False
    """Whether a video may only raise the smallest size of a frame that the reader sets, never lower it."""

    own_cuts: ClassVar[bool] = False
    """Whether the sampler understands the options ``video_start`` and ``video_end``; otherwise the reader shows it no more of
    the video than lies between them."""

    @abstractmethod
    def select(self, num_frames: int, fps: float) -> list[int]:
        """Choose frames.

        Args:
            num_frames: Frames in the video.
            fps: Its frames per second.

        Returns:
            Ascending frame indices; frames may repeat in very short videos.
        """

    def plan(self, video: VideoFacts, limits: FrameLimits, look: Look) -> FramePlan:
        """Choose frames and sizes; here all frames have one size and share the budget evenly.

        Args:
            video: What is known about the video.
            limits: What frames may cost.
            look: Decodes frames, for policies whose choice depends on what is to be seen.

        Raises:
            ValueError: If the limits cannot be kept.
        """
        return _even_plan(self.select(video.num_frames, video.fps), video, limits)

    def adapted(self, options: dict[str, Any]) -> FrameSampler:
        """The sampler for a video that brings options of its own, such as ``fps``.

        Raises:
            ValueError: If an option is not understood.
        """
        if options:
            raise ValueError(f"{type(self).__name__} takes no options from a sample, got {', '.join(options)}")
        return self


class UniformFps(FrameSampler):
    """Evenly spaced frames at a wanted rate, between a smallest and a largest number (Keye-VL 8B sheet 2.2 items 2 to 4).

    Args:
        fps: Wanted frames per second.
        min_frames: Fewest frames.
        max_frames: Most frames.
        budget_factor: How many times its share of a video's budget a frame may take. The released Preview says 2, a leftover
            through which a video may cost twice its budget; 1 keeps the budget.
        video_start: Seconds at which frames begin; ``None`` for the start of the file.
        video_end: Seconds at which they end; ``None`` for the end of the file.

    Example:
        >>> UniformFps(fps=2.0, min_frames=4, max_frames=8).select(num_frames=16, fps=4.0)
        [0, 2, 4, 6, 9, 11, 13, 15]
    """

    own_cuts = True  # sheet 2.2 item 1

    def __init__(
        self,
        fps: float = 2.0,
        min_frames: int = 4,
        max_frames: int = 768,
        budget_factor: float = 2.0,
        video_start: float | None = None,
        video_end: float | None = None,
    ) -> None:
        if fps <= 0 or not 1 <= min_frames <= max_frames:
            raise ValueError(f"need fps > 0 and 1 <= min_frames <= max_frames, got {fps}, {min_frames}, {max_frames}")
        if budget_factor < 1:
            raise ValueError(
                f"budget_factor={budget_factor} must be at least 1: smaller budgets are the reader's to set"
            )
        self.fps = fps
        self.min_frames = min_frames
        self.max_frames = max_frames
        self.budget_factor = budget_factor
        self.video_start = video_start
        self.video_end = video_end

    def select(self, num_frames: int, fps: float) -> list[int]:
        """See :class:`FrameSampler`.

        Raises:
            ValueError: If no frame lies between ``video_start`` and ``video_end``.
        """
        first, last = self._range(num_frames, fps)
        within = last - first + 1
        wanted = within / fps * self.fps
        count = min(max(wanted, self.min_frames), self.max_frames, within)
        count = max(int(count) // 2 * 2, min(2, within))  # sheet 2.2: FRAME_FACTOR 2, floor to even
        return np.linspace(first, last, count).round().astype(int).tolist()

    def plan(self, video: VideoFacts, limits: FrameLimits, look: Look) -> FramePlan:
        """See :class:`FrameSampler`."""
        first, last = self._range(video.num_frames, video.fps)
        indices = self.select(video.num_frames, video.fps)
        return _even_plan(indices, video, limits, self.budget_factor, within=last - first + 1)

    def adapted(self, options: dict[str, Any]) -> UniformFps:
        """See :class:`FrameSampler`; understands its own arguments or, instead of rate and numbers, ``nframes``."""
        own = {name: getattr(self, name) for name in ("fps", "min_frames", "max_frames", "video_start", "video_end")}
        unknown = options.keys() - own.keys() - {"nframes"}
        if unknown:
            raise ValueError(
                f"unknown video option {', '.join(sorted(unknown))}: a sample may set {', '.join(own)}, nframes"
            )
        if not options:
            return self
        changed = dict(options)
        if "nframes" in changed:
            contradicting = sorted(changed.keys() & {"fps", "min_frames", "max_frames"})
            if contradicting:
                raise ValueError(f"nframes and {', '.join(contradicting)} together contradict: give one")
            count = max(round(changed.pop("nframes") / 2) * 2, 2)  # Keye-VL 8B sheet 2.2 item 2: rounded to even
            changed |= {"min_frames": count, "max_frames": count}
        return UniformFps(**(own | changed), budget_factor=self.budget_factor)

    def _range(self, num_frames: int, fps: float) -> tuple[int, int]:
        """First and last frame that may be chosen."""
        first = 0 if self.video_start is None else max(0, math.ceil(self.video_start * fps))
        last = num_frames - 1 if self.video_end is None else min(math.floor(self.video_end * fps), num_frames - 1)
        if first > last:
            raise ValueError(
                f"no frame lies between video_start={self.video_start} and video_end={self.video_end} in a video of "
                f"{num_frames / fps:.2f} seconds"
            )
        return first, last


def _even_plan(
    indices: Sequence[int], video: VideoFacts, limits: FrameLimits, factor: float = 1.0, within: int | None = None
) -> FramePlan:
    """Frames of one size that share the budget evenly; ``within`` frames of the video were there to choose from."""
    cap = even_share(len(indices), limits.min_pixels, limits.max_pixels, limits.total_pixels, factor)
    pixels = limits.geometry.token_pixels
    reason = (
        f"{len(indices)} of {video.num_frames} frames, each up to {cap / pixels:.0f} tokens: {factor:g} times its share of "
        f"{limits.total_pixels / pixels:.0f}, between {limits.min_pixels / pixels:.0f} and {limits.max_pixels / pixels:.0f}"
    )
    return FramePlan(
        indices=tuple(indices),
        size=limits.resized(video, cap),
        fps=len(indices) / (within or video.num_frames) * video.fps,
        reason=reason,
    )
