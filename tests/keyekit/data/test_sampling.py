"""Frame sampling."""

import numpy as np
import pytest

from keyekit.data.sampling import FrameSampler, UniformFps


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
