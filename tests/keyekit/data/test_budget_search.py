"""Frames under a searched budget: the sheet's vectors, the tables of short videos, options."""

import numpy as np
import pytest

from keyekit.data.budget_search import ADAPTIVE_SCALES, BudgetSearch
from keyekit.data.processing.geometry import KEYE_PATCHES
from keyekit.data.sampling import FrameLimits, FramePlan, VideoFacts

LIMITS = FrameLimits.of_tokens(64, 256, 184_320)  # Keye-VL-2.0 sheet 6.2


def no_look(indices):
    raise AssertionError("this policy has no need to see frames")


def plan(num_frames: int, fps: float = 2.0, limits: FrameLimits = LIMITS, **arguments) -> FramePlan:
    video = VideoFacts(num_frames=num_frames, fps=fps, height=1080, width=1920)
    return BudgetSearch(**arguments).plan(video, limits, no_look)


@pytest.mark.parametrize(
    ("frames", "cap", "size", "tokens"),
    [  # Keye-VL-2.0 sheet 16 item 8
        (720, 256, (336, 588), 252),
        (721, 256, (336, 588), 252),
        (722, 256, (336, 588), 252),
        (723, 255, (308, 588), 231),
        (1440, 129, (224, 420), 120),
        (2880, 65, (168, 280), 60),
    ],
)
def test_frame_budget(frames: int, cap: int, size, tokens: int) -> None:
    found = plan(frames)
    assert len(found.indices) == frames
    assert found.size == size
    assert KEYE_PATCHES.tokens(*found.size) == tokens
    assert f"up to {cap} tokens each" in found.reason
    assert found.tokens() == frames * tokens


def test_two_hours_are_sampled_at_two_fifths_of_a_frame_a_second() -> None:
    found = plan(7200 * 25, fps=25.0)  # Keye-VL-2.0 sheet 6.2 and 16 item 8
    assert len(found.indices) == 2880
    assert found.fps == pytest.approx(0.4)


def test_the_corrected_search_stays_below_the_budget() -> None:
    assert "up to 128 tokens" in plan(1440, keep_budget=True).reason
    assert "up to 64 tokens" in plan(2880, keep_budget=True).reason


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [(300, 30.0, 20), (299, 29.97, 19), (10, 1.0, 10), (10, 30.0, 2), (1, 30.0, 1), (3, 0.5, 3)],
)
def test_how_many(num_frames: int, fps: float, expected: int) -> None:
    # sheet 6.2: int(total / video_fps * min(fps, video_fps)), at least 2, at most what there is
    found = plan(num_frames, fps)
    assert found.indices == tuple(np.linspace(0, num_frames - 1, expected).round().astype(int).tolist())
    assert found.timestamps(fps) == tuple(index / fps for index in found.indices)
    assert list(found.indices) == BudgetSearch().select(num_frames, fps)


@pytest.mark.parametrize(
    ("table", "steps"),
    [  # Keye-VL-2.0 sheet 6.3
        ("paper", [(256, 0.125), (257, 0.25), (512, 0.25), (1024, 0.5), (1025, 1.0), (2048, 1.0), (9000, 1.0)]),
        ("code", [(259, 0.09), (260, 0.18), (518, 0.18), (1036, 0.36), (2016, 0.7), (2017, 1.0), (9000, 1.0)]),
    ],
)
def test_short_videos_have_a_share_of_the_budget(table: str, steps) -> None:
    sampler = BudgetSearch(adaptive=table)  # pyright: ignore[reportArgumentType]
    for seconds, scale in steps:
        assert sampler.scale(seconds) == scale
        assert sampler.scale(seconds, num_videos=2) == 1.0  # single video only
        assert BudgetSearch().scale(seconds) == 1.0  # off by default
    assert set(ADAPTIVE_SCALES) == {"paper", "code"}


def test_the_share_is_taken_once() -> None:
    # 256 seconds at 2 fps: 512 frames, an eighth of 184,320 tokens is 23,040; a 64th would hold 45 frames
    found = plan(512, adaptive="paper")
    assert len(found.indices) == 23_040 // 64
    assert "0.125 of the budget" in found.reason
    several = FrameLimits(
        min_pixels=LIMITS.min_pixels, max_pixels=LIMITS.max_pixels, total_pixels=LIMITS.total_pixels / 2, num_videos=2
    )
    assert len(plan(512, limits=several, adaptive="paper").indices) == 512


def test_samples_may_bring_options() -> None:
    sampler = BudgetSearch(adaptive="code")
    assert sampler.adapted({}) is sampler
    own = sampler.adapted({"fps": 1.0, "min_frames": 3, "max_frames": 7})
    assert vars(own) == vars(sampler) | {"fps": 1.0, "min_frames": 3, "max_frames": 7}
    assert len(own.select(1000, 10.0)) == 7
    with pytest.raises(
        ValueError, match="unknown video option video_start"
    ):  # sheet 6.2: raises in the released reader
        sampler.adapted({"video_start": 1.0})


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="choose paper, code, or None"):
        BudgetSearch(adaptive="on")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="fps > 0"):
        BudgetSearch(fps=0)
