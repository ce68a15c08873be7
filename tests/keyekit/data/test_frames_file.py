"""The file of one decoded medium."""

import errno

import numpy as np
import pytest

from keyekit.data.frames_file import drop_pixels, has_pixels, read_frames, read_shape, shape_of, write_frames
from keyekit.data.media import Frames

RANDOM = np.random.default_rng(0)


def picture(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, (*shape, 3), dtype=np.uint8)


MEDIA = {
    "image": Frames(runs=(picture(1, 28, 56),)),
    "clip": Frames(runs=(picture(3, 4, 6),), timestamps=(0.0, 0.5, 1.25), fps=2.0),
    "slow and fast": Frames(
        runs=(picture(1, 8, 6), picture(2, 4, 3), picture(1, 8, 6)),
        timestamps=(0.0, 0.5, 1.0, 1.5),
        fps=2.0,
        fast=(False, True, True, False),
    ),
}


@pytest.mark.parametrize("name", MEDIA)
def test_a_medium_comes_back_equal(tmp_path, name) -> None:
    frames, path = MEDIA[name], tmp_path / "a.frames"
    assert write_frames(path, frames) == path.stat().st_size
    back = read_frames(path)
    assert back is not None
    assert (back.timestamps, back.fps, back.fast) == (frames.timestamps, frames.fps, frames.fast)
    for run, expected in zip(back.runs, frames.runs, strict=True):
        np.testing.assert_array_equal(run, expected)
    shape = read_shape(path)
    assert shape == shape_of(frames)
    assert shape.runs == tuple(run.shape[:3] for run in frames.runs)
    assert shape.num_bytes == sum(run.nbytes for run in frames.runs)
    assert has_pixels(path)
    drop_pixels(path)
    assert (read_frames(path), read_shape(path), has_pixels(path)) == (None, shape, False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.frames"]


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\0" * 400, b"text that is no medium" * 20, b"\xff" * 80], ids=len
)
def test_other_files_are_refused(tmp_path, content) -> None:
    path = tmp_path / "a.frames"
    path.write_bytes(content)
    for read in (read_frames, read_shape, drop_pixels):
        with pytest.raises(ValueError, match="no stored medium"):
            read(path)
    assert not has_pixels(path)


def test_a_cut_file_is_refused(tmp_path) -> None:
    path = tmp_path / "a.frames"
    write_frames(path, MEDIA["clip"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{len(whole) - 1} bytes instead of {len(whole)}"):
        read_frames(path)
    assert not has_pixels(path)


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path, monkeypatch) -> None:
    def full(*_) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "ascontiguousarray", full)
    with pytest.raises(OSError, match="No space left"):
        write_frames(tmp_path / "a.frames", MEDIA["clip"])
    assert not list(tmp_path.iterdir())
