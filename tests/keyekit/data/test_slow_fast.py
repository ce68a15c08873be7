"""Slow and fast frames: the sheet's vectors, frames, options."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from keyekit.data.processing.geometry import KEYE_PATCHES
from keyekit.data.sampling import FrameLimits, VideoFacts
from keyekit.data.slow_fast import SlowFast

LIMITS = FrameLimits.of_tokens(48, 768, 65_536)  # Keye-VL 8B sheet 3.2
VIDEO = VideoFacts(num_frames=300, fps=30.0, height=720, width=1280)


@pytest.mark.parametrize(
    ("slow", "fast", "found", "size", "fast_size", "total"),
    [  # Keye-VL 8B sheet 3.2, test vectors
        (10, 20, 768, (560, 1008), (308, 532), 11_380),
        (64, 64, 768, (560, 1008), (308, 532), 59_456),
        (100, 100, 505, (448, 812), (224, 420), 58_400),
        (100, 500, 264, (336, 588), (168, 308), 58_200),
        (300, 700, 107, (196, 364), (140, 252), 58_800),
    ],
)
def test_sizes(slow: int, fast: int, found: int, size, fast_size, total: int) -> None:
    assert SlowFast().sizes(slow, fast, VIDEO, LIMITS) == (size, fast_size, found)
    assert slow * KEYE_PATCHES.tokens(*size) + fast * KEYE_PATCHES.tokens(*fast_size) == total


def test_the_corrected_search_stays_below_the_budget() -> None:
    def cost(tokens: int) -> int:
        return 100 * tokens + 100 * max(int(0.3 * tokens), 48)

    released, corrected = (SlowFast(keep_budget=keep).sizes(100, 100, VIDEO, LIMITS)[2] for keep in (False, True))
    assert (released, corrected) == (505, 504)
    assert cost(corrected) <= 65_536 < cost(released)


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [(300, 30.0, 20), (299, 29.97, 19), (16, 4.0, 8), (10, 1.0, 10), (30_000, 25.0, 1365), (2, 30.0, 1)],
)
def test_how_many(num_frames: int, fps: float, expected: int) -> None:
    # sheet 3.2 item 1: int(total / video_fps * min(fps, video_fps)), at most budget / smallest frame = 1365
    video = VideoFacts(num_frames=num_frames, fps=fps, height=56, width=56)
    plan = SlowFast().plan(video, LIMITS, looks([(255, 255, 255)] * num_frames))
    assert plan.indices == tuple(np.linspace(0, num_frames - 1, expected).round().astype(int).tolist())
    assert plan.timestamps(fps) == tuple(index / fps for index in plan.indices)
    assert SlowFast(max_frames=5).plan(video, LIMITS, looks([(255, 255, 255)] * num_frames)).indices == tuple(
        np.linspace(0, num_frames - 1, min(5, expected)).round().astype(int).tolist()
    )


def looks(colours: Sequence[tuple[int, int, int]]):
    def look(indices: Sequence[int]) -> Iterator[np.ndarray]:
        return (np.full((56, 56, 3), colours[index], np.uint8) for index in indices)

    return look


def test_a_plan_knows_slow_and_fast_frames_and_says_why() -> None:
    colours = [(255, 255, 255)] * 6 + [(60, 0, 0)] * 6 + [(255, 255, 255)] * 4
    video = VideoFacts(num_frames=16, fps=4.0, height=720, width=1280)
    plan = SlowFast().plan(video, LIMITS, looks(colours))
    assert plan.indices == (0, 2, 4, 6, 9, 11, 13, 15)
    assert plan.fast == (False, True, True, False, True, True, False, True)
    assert (plan.size, plan.fast_size, plan.fps) == ((560, 1008), (308, 532), 2.0)
    assert [plan.size_of(place) for place in (0, 1)] == [(560, 1008), (308, 532)]
    assert plan.tokens() == 3 * 720 + 5 * 209
    assert plan.reason == (
        "8 of 16 frames: 3 slow ones up to 768 tokens, 5 fast ones up to 0.3 of that: 3205 of 65536 tokens"
    )


def test_a_video_without_repetition_has_no_fast_frame() -> None:
    colours = [(255, 255, 255), (60, 0, 0)] * 4
    plan = SlowFast().plan(VideoFacts(num_frames=8, fps=2.0, height=56, width=56), LIMITS, looks(colours))
    assert (plan.fast, plan.fast_size) == ((), (0, 0))


def test_samples_may_bring_options() -> None:
    # sheet 3.2 item 7
    sampler = SlowFast(fast_ratio=0.5, keep_budget=True)
    assert sampler.adapted({}) is sampler
    own = sampler.adapted({"fps": 1.0, "max_frames": 7, "min_frame_similarity": 0.95})
    assert vars(own) == vars(sampler) | {"fps": 1.0, "max_frames": 7, "min_frame_similarity": 0.95}
    with pytest.raises(ValueError, match="unknown video option video_start"):  # the released reader raises, too
        sampler.adapted({"video_start": 1.0})


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="min_frames <= max_frames"):
        SlowFast(min_frames=9, max_frames=8)
    with pytest.raises(ValueError, match="fast_ratio=0"):
        SlowFast(fast_ratio=0)
