"""Frame sampling."""

import numpy as np
import pytest

from keyekit.data.sampling import FrameLimits, FramePlan, FrameSampler, UniformFps, VideoFacts


def test_follows_the_released_rule() -> None:
    # Keye-VL 8B sheet 2.2 items 2 and 3: clamp(total / video_fps * fps, min, max, total), floor to even, linspace rounded
    for total, video_fps in ((300, 30.0), (16, 4.0), (7, 25.0), (100_000, 24.0)):
        indices = UniformFps().select(total, video_fps)
        wanted = min(max(total / video_fps * 2.0, 4), 768, total)
        assert len(indices) == int(wanted) // 2 * 2
        assert indices == np.linspace(0, total - 1, len(indices)).round().astype(int).tolist()


def test_very_short_videos_give_what_there_is() -> None:
    assert UniformFps().select(1, 25.0) == [0]
    assert UniformFps().select(3, 25.0) == [0, 2]


def test_samples_may_bring_options() -> None:
    sampler = UniformFps(fps=2.0)
    assert sampler.adapted({}) is sampler
    assert len(sampler.adapted({"fps": 1.0, "min_frames": 2}).select(40, 4.0)) == 10
    with pytest.raises(ValueError, match="unknown video option zoom"):
        sampler.adapted({"zoom": 2})


def test_other_samplers_refuse_options_they_do_not_know() -> None:
    class First(FrameSampler):
        def select(self, num_frames: int, fps: float) -> list[int]:
            return [0]

    with pytest.raises(ValueError, match="First takes no options"):
        First().adapted({"fps": 1})


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="min_frames <= max_frames"):
        UniformFps(min_frames=9, max_frames=8)


def test_a_sample_may_fix_the_number_of_frames() -> None:
    sampler = UniformFps(fps=2.0)
    for asked, given in ((6, 6), (7, 8), (1, 2), (500, 40)):
        assert len(sampler.adapted({"nframes": asked}).select(40, 4.0)) == given
    with pytest.raises(ValueError, match="nframes and fps together contradict"):
        sampler.adapted({"nframes": 4, "fps": 1.0})
    assert len(sampler.adapted({"nframes": 6, "video_end": 5.0}).select(40, 4.0)) == 6


def test_frames_may_come_from_a_part_of_the_video() -> None:
    # Keye-VL 8B sheet 2.2 item 1: from the first frame at or after video_start to the last at or before video_end
    sampler = UniformFps(fps=2.0).adapted({"video_start": 2.1, "video_end": 8.0})
    indices = sampler.select(100, 10.0)
    assert (indices[0], indices[-1], len(indices)) == (21, 80, 12)
    video = VideoFacts(num_frames=100, fps=10.0, height=56, width=56)
    plan = sampler.plan(video, FrameLimits.of_tokens(4, 4, 10**6), lambda wanted: iter(()))
    assert plan.indices == tuple(indices)
    assert plan.fps == pytest.approx(12 / 60 * 10.0)  # sample_fps counts the frames of the part
    for options in ({"video_start": 10.0}, {"video_start": 5.0, "video_end": 4.0}, {"video_end": -1.0}):
        with pytest.raises(ValueError, match="no frame lies between"):
            UniformFps().adapted(options).select(100, 10.0)


def test_a_sampler_that_only_chooses_frames_keeps_the_budget() -> None:
    class Every(FrameSampler):
        def select(self, num_frames: int, fps: float) -> list[int]:
            return list(range(num_frames))

    video = VideoFacts(num_frames=40, fps=4.0, height=720, width=1280)
    plan = Every().plan(video, FrameLimits.of_tokens(16, 768, 4000), lambda wanted: iter(()))
    assert plan.indices == tuple(range(40))
    assert plan.size == (196, 364)  # 91 tokens of a share of 100
    assert plan.tokens() <= 4000


def test_limits_and_plans() -> None:
    for low, high, total in ((0, 4, 9), (8, 4, 9), (4, 4, 0)):
        with pytest.raises(ValueError, match="min_pixels <= max_pixels"):
            FrameLimits.of_tokens(low, high, total)
    plan = FramePlan(indices=(0, 3), size=(56, 56), fps=1.0, reason="", fast=(False, True), fast_size=(28, 56))
    assert plan.tokens() == 4 + 2
    assert plan.timestamps(2.0) == (0.0, 1.5)
    with pytest.raises(ValueError, match="budget_factor"):
        UniformFps(budget_factor=0.5)
