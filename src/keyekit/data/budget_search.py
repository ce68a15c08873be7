"""As many frames as the rate asks for, at the size that a budget of tokens allows: the frames of Keye-VL-2.0."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from keyekit.data.processing.budget import search_tokens
from keyekit.data.sampling import FrameLimits, FramePlan, FrameSampler, Look, VideoFacts

__all__ = ["ADAPTIVE_SCALES", "BudgetSearch"]

# Keye-VL-2.0 sheet 6.3: (seconds up to which, share of the budget); longer videos have all of it.
ADAPTIVE_SCALES: dict[str, tuple[tuple[float, float], ...]] = {
    "paper": ((256, 0.125), (512, 0.25), (1024, 0.5), (2048, 1.0)),
    "code": ((259, 0.09), (518, 0.18), (1036, 0.36), (2016, 0.7)),
}
"""Shares of the budget that short videos have, as the paper tables them and as the released code does."""


class BudgetSearch(FrameSampler):
    """Evenly spaced frames of one size; the more frames, the smaller each (Keye-VL-2.0 sheet 6.2).

    Args:
        fps: Wanted frames per second; a video that has fewer gives all of its frames.
        min_frames: Fewest frames.
        max_frames: Most frames; never more than the budget holds at the smallest size. ``None`` for as many as it holds.
        adaptive: Give short videos a part of the budget, by the table of the ``paper`` or of the released ``code``
            (:data:`ADAPTIVE_SCALES`); ``None``, the released default, gives every video all of it. Only where a sample has a
            single video; applied once.
        keep_budget: The released search ends at the first size that *exceeds* the budget; ``True`` takes the last that fits.

    Example:
        >>> len(BudgetSearch().select(num_frames=3000, fps=25.0))
        240
    """

    def __init__(
        self,
        fps: float = 2.0,
        min_frames: int = 2,
        max_frames: int | None = None,
        adaptive: Literal["paper", "code"] | None = None,
        keep_budget: bool = False,
    ) -> None:
        if fps <= 0 or min_frames < 1 or (max_frames is not None and max_frames < min_frames):
            raise ValueError(f"need fps > 0 and 1 <= min_frames <= max_frames, got {fps}, {min_frames}, {max_frames}")
        if adaptive is not None and adaptive not in ADAPTIVE_SCALES:
            raise ValueError(
                f"adaptive={adaptive!r}: choose {', '.join(ADAPTIVE_SCALES)}, or None for no smaller budgets"
            )
        self.fps = fps
        self.min_frames = min_frames
        self.max_frames = max_frames
        self.adaptive: Literal["paper", "code"] | None = adaptive
        self.keep_budget = keep_budget

    def select(self, num_frames: int, fps: float) -> list[int]:
        """See :class:`FrameSampler`."""
        return self._select(num_frames, fps, self.max_frames)

    def scale(self, seconds: float, num_videos: int = 1) -> float:
        """Share of the budget that a video of this duration has (Keye-VL-2.0 sheet 6.3).

        Example:
            >>> BudgetSearch(adaptive="paper").scale(300.0), BudgetSearch(adaptive="code").scale(300.0)
            (0.25, 0.18)
        """
        if self.adaptive is None or num_videos > 1:
            return 1.0
        return next((scale for limit, scale in ADAPTIVE_SCALES[self.adaptive] if seconds <= limit), 1.0)

    def plan(self, video: VideoFacts, limits: FrameLimits, look: Look) -> FramePlan:
        """See :class:`FrameSampler`."""
        scale = self.scale(video.seconds, limits.num_videos)
        total, pixels = limits.total_pixels * scale, limits.geometry.token_pixels
        holds = max(int(total // limits.min_pixels), 1)
        most = holds if self.max_frames is None else min(self.max_frames, holds)
        indices = self._select(video.num_frames, video.fps, most)
        found = search_tokens(
            lambda tokens: len(indices) * tokens * pixels,
            math.ceil(limits.min_pixels / pixels),
            int(limits.max_pixels / pixels),
            total,
            self.keep_budget,
        )
        size = limits.resized(video, found * pixels)
        cost = len(indices) * limits.geometry.tokens(*size)
        reason = f"{len(indices)} of {video.num_frames} frames up to {found} tokens each: {cost} of {total / pixels:.0f} tokens"
        return FramePlan(
            indices=tuple(indices),
            size=size,
            fps=len(indices) / video.num_frames * video.fps,
            reason=reason + (f", {scale:g} of the budget by duration" if scale != 1 else ""),
        )

    def adapted(self, options: dict[str, Any]) -> BudgetSearch:
        """See :class:`FrameSampler`; understands ``fps``, ``min_frames`` and ``max_frames`` (sheet 6.2)."""
        allowed = ("fps", "min_frames", "max_frames")
        unknown = options.keys() - set(allowed)
        if unknown:
            raise ValueError(
                f"unknown video option {', '.join(sorted(unknown))}: a sample may set {', '.join(allowed)}"
            )
        return BudgetSearch(**(vars(self) | options)) if options else self

    def _select(self, num_frames: int, fps: float, most: int | None) -> list[int]:
        count = max(int(num_frames / fps * min(self.fps, fps)), self.min_frames)
        count = min(count, num_frames) if most is None else min(count, most, num_frames)
        return np.linspace(0, num_frames - 1, count).round().astype(int).tolist()
