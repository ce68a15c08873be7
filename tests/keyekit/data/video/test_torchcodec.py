"""The second reader shows the frames of the first; skipped where torchcodec or its FFmpeg is missing."""

from __future__ import annotations

import numpy as np
import pytest

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData
from keyekit.data.media import read_video
from keyekit.data.sampling import FrameLimits, UniformFps
from keyekit.data.video.pyav import PyAV
from keyekit.data.video.torchcodec import TorchCodec


@pytest.fixture
def clip(encode):
    """A clip with B-frames, that torchcodec can read here."""
    path = encode("tc.mp4", 90, g="30", bf="3", preset="veryfast")
    try:
        with TorchCodec().open(path, 2**26, Deadline(None, "")) as video:
            next(video.frames([0]))
    except ImportError as error:
        pytest.skip(str(error).splitlines()[0])
    return path


@pytest.mark.parametrize("threads", [0, 1])
def test_frames_are_those_of_pyav(clip, threads: int) -> None:
    wanted = [0, 3, 44, 44, 89]
    with (
        TorchCodec(threads=threads).open(clip, 2**26, Deadline(60, "")) as found,
        PyAV().open(clip, 2**26, Deadline(60, "")) as expected,
    ):
        assert found.facts == expected.facts
        np.testing.assert_array_equal(found.seconds, expected.seconds)
        for one, other in zip(found.frames(wanted), expected.frames(wanted), strict=True):
            assert np.abs(one.astype(int) - other).max() <= 2


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_sizes_are_the_planned_ones(clip, interpolation) -> None:
    limits = FrameLimits.of_tokens(4, 6, 10**6)
    video = read_video(clip, UniformFps(), limits=limits, interpolation=interpolation, reader=TorchCodec())
    plain = read_video(clip, UniformFps(), limits=limits, interpolation=interpolation)
    assert video.pixels.shape == plain.pixels.shape
    assert video.timestamps == plain.timestamps
    assert np.abs(video.pixels.astype(int) - plain.pixels).mean() < 8


def test_a_broken_file_has_a_reason(clip, tmp_path) -> None:
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:3000])
    with pytest.raises(BadData) as caught:
        read_video(tmp_path / "cut.mp4", UniformFps(), reader=TorchCodec())
    assert caught.value.reason == "broken_media"


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="threads >= 0"):
        TorchCodec(threads=-1)


def test_without_it_the_error_says_what_to_do(encode, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchcodec", None)
    with pytest.raises(ImportError, match="or take PyAV"):
        TorchCodec().open(encode("tc.mp4", 90, g="30", bf="3", preset="veryfast"), 2**26, Deadline(None, ""))
