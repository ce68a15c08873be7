"""What every frame sampler has to fulfil."""

from __future__ import annotations

from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_frames_exist", "check_frames_ascend", "check_same_video_same_frames")
"""Functions of this module that make up the suite."""

_VIDEOS = ((1, 1.0), (2, 30.0), (7, 4.0), (16, 4.0), (301, 29.97), (5000, 25.0))


def check_frames_exist(cls: type) -> None:
    """At least one frame is chosen, and every chosen frame is in the video."""
    sampler = make(cls)
    for num_frames, fps in _VIDEOS:
        chosen = sampler.select(num_frames, fps)
        assert chosen, f"no frame of a video of {num_frames} frames"
        assert all(0 <= frame < num_frames for frame in chosen), f"{chosen} are not all in 0..{num_frames - 1}"


def check_frames_ascend(cls: type) -> None:
    """Frames come in the order of time."""
    sampler = make(cls)
    for num_frames, fps in _VIDEOS:
        chosen = sampler.select(num_frames, fps)
        assert list(chosen) == sorted(chosen), f"frames of a video of {num_frames} frames are not in order"


def check_same_video_same_frames(cls: type) -> None:
    """The choice depends on the video alone, so that caches stay valid."""
    sampler = make(cls)
    for num_frames, fps in _VIDEOS:
        first, second = list(sampler.select(num_frames, fps)), list(sampler.select(num_frames, fps))
        assert first == second, "the same video gave different frames"
