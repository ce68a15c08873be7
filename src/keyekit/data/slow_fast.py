"""Slow frames in full, fast frames small: the frames of Keye-VL 1.5."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from keyekit.data.processing.budget import search_tokens
from keyekit.data.processing.similarity import repeats
from keyekit.data.sampling import FrameLimits, FramePlan, FrameSampler, Look, VideoFacts

__all__ = ["SlowFast"]


class SlowFast(FrameSampler):
    """Frames that show something new are slow and large, those that repeat the last slow frame are fast and small.

    Keye-VL 8B sheet 3.2: a frame is fast when at least ``similarity`` of its patches look like those of the last slow frame.
    Then the largest size of the slow frames is searched for which all frames together keep to the budget.

    Args:
        fps: Wanted frames per second; a video that has fewer gives all of its frames.
        min_frames: Fewest frames. The released code has no lower bound, and takes none of a clip shorter than half a second.
        max_frames: Most frames; never more than the budget holds at the smallest size. ``None`` for as many as it holds.
        min_frame_similarity: Share of similar patches from which on a frame is fast. The released code says 0.9, the paper
            0.95.
        fast_ratio: Tokens of a fast frame for one of a slow frame.
        keep_budget: The released search ends at the first size that *exceeds* the budget; ``True`` takes the last that fits.

    Example:
        >>> SlowFast(max_frames=4).select(num_frames=16, fps=4.0)
        [0, 5, 10, 15]
    """

    firm_minimum = True  # sheet 3.2 item 7: min_pixels of a message is clamped up to 48 tokens

    def __init__(
        self,
        fps: float = 2.0,
        min_frames: int = 1,
        max_frames: int | None = None,
        min_frame_similarity: float = 0.9,
        fast_ratio: float = 0.3,
        keep_budget: bool = False,
    ) -> None:
        if fps <= 0 or min_frames < 1 or (max_frames is not None and max_frames < min_frames):
            raise ValueError(f"need fps > 0 and 1 <= min_frames <= max_frames, got {fps}, {min_frames}, {max_frames}")
        if not 0 < fast_ratio <= 1:
            raise ValueError(f"fast_ratio={fast_ratio} must lie above 0 and not above 1")
        self.fps = fps
        self.min_frames = min_frames
        self.max_frames = max_frames
        self.min_frame_similarity = min_frame_similarity
        self.fast_ratio = fast_ratio
        self.keep_budget = keep_budget

    def select(self, num_frames: int, fps: float) -> list[int]:
        """See :class:`FrameSampler`."""
        return self._select(num_frames, fps, self.max_frames)

    def plan(self, video: VideoFacts, limits: FrameLimits, look: Look) -> FramePlan:
        """See :class:`FrameSampler`; decodes the chosen frames once to compare them."""
        holds = max(int(limits.total_pixels // limits.min_pixels), 1)
        most = holds if self.max_frames is None else min(self.max_frames, holds)
        indices = self._select(video.num_frames, video.fps, most)
        fast = tuple(repeats(look(indices), self.min_frame_similarity))
        size, fast_size, found = self.sizes(fast.count(False), fast.count(True), video, limits)
        geometry, slow = limits.geometry, fast.count(False)
        cost = slow * geometry.tokens(*size) + fast.count(True) * geometry.tokens(*fast_size)
        reason = (
            f"{len(indices)} of {video.num_frames} frames: {slow} slow ones up to {found} tokens, {fast.count(True)} fast "
            f"ones up to {self.fast_ratio:g} of that: {cost} of {limits.total_pixels / geometry.token_pixels:.0f} tokens"
        )
        return FramePlan(
            indices=tuple(indices),
            size=size,
            fps=len(indices) / video.num_frames * video.fps,
            reason=reason,
            fast=fast if any(fast) else (),
            fast_size=fast_size if any(fast) else (0, 0),
        )

    def sizes(
        self, num_slow: int, num_fast: int, video: VideoFacts, limits: FrameLimits
    ) -> tuple[tuple[int, int], tuple[int, int], int]:
        """Search the sizes of slow and fast frames (Keye-VL 8B sheet 3.2 items 4 and 5).

        Args:
            num_slow: Slow frames.
            num_fast: Fast frames.
            video: Gives the shape of the frames.
            limits: What frames may cost.

        Returns:
            Height and width of slow frames, the same of fast frames, and the tokens found for a slow frame.
        """
        geometry = limits.geometry
        low, high = math.ceil(limits.min_pixels / geometry.token_pixels), int(limits.max_pixels / geometry.token_pixels)
        found = search_tokens(
            lambda tokens: num_slow * tokens + num_fast * max(int(self.fast_ratio * tokens), low),
            low,
            high,
            limits.total_pixels / geometry.token_pixels,
            self.keep_budget,
        )
        size = limits.resized(video, found * geometry.token_pixels)
        most_fast = max(int(self.fast_ratio * geometry.tokens(*size)), low)
        return size, limits.resized(video, most_fast * geometry.token_pixels), found

    def adapted(self, options: dict[str, Any]) -> SlowFast:
        """See :class:`FrameSampler`; understands ``fps``, ``max_frames`` and ``min_frame_similarity`` (sheet 3.2 item 7)."""
        allowed = ("fps", "max_frames", "min_frame_similarity")
        unknown = options.keys() - set(allowed)
        if unknown:
            raise ValueError(
                f"unknown video option {', '.join(sorted(unknown))}: a sample may set {', '.join(allowed)}"
            )
        return SlowFast(**(vars(self) | options)) if options else self

    def _select(self, num_frames: int, fps: float, most: int | None) -> list[int]:
        count = int(num_frames / fps * min(self.fps, fps))
        count = min(max(count, self.min_frames), num_frames)
        count = count if most is None else min(count, most)
        return np.linspace(0, num_frames - 1, count).round().astype(int).tolist()
