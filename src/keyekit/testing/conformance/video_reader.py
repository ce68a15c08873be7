"""What every reader of videos has to fulfil."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData
from keyekit.data.video.base import OpenVideo
from keyekit.data.world.files import write_video
from keyekit.testing.conformance.construction import make

__all__ = ["CHECKS"]

CHECKS = ("check_frames_and_times", "check_sizes", "check_bad_files")
"""Functions of this module that make up the suite."""

_LEVELS = np.linspace(20, 220, 16).round().astype(np.uint8)


def check_frames_and_times(cls: type) -> None:
    """Any frame comes out, in order, twice where it is asked for twice, and with the time that the file says."""
    with _clip(cls) as video:
        assert (video.facts.num_frames, video.facts.fps) == (16, 4.0)
        np.testing.assert_allclose(video.seconds, np.arange(16) / 4)
        for wanted in ([0], [3, 3, 15], list(range(16))):
            found = [picture.mean() for picture in video.frames(wanted)]
            np.testing.assert_allclose(found, _LEVELS[wanted], atol=4)


def check_sizes(cls: type) -> None:
    """Pictures have the sizes that were asked for, both ways of resizing."""
    with _clip(cls) as video:
        assert next(video.frames([1])).shape == (56, 84, 3)
        for resizing in ("fused", "exact"):
            found = list(video.frames([1, 2], [(28, 28), (56, 28)], "bilinear", resizing))
            assert [picture.shape for picture in found] == [(28, 28, 3), (56, 28, 3)]
            assert all(picture.dtype == np.uint8 for picture in found)


def check_bad_files(cls: type) -> None:
    """Files that cannot be read are bad data with a reason."""
    with tempfile.TemporaryDirectory() as folder:
        noise = Path(folder) / "noise.mp4"
        noise.write_bytes(bytes(range(256)) * 8)
        for path, reason in ((noise, "broken_media"), (noise.with_name("none.mp4"), "missing_media")):
            found = "read"
            try:
                with make(cls).open(path, 2**26, Deadline(30, path.name)) as video:
                    list(video.frames([0]))
            except BadData as error:
                found = error.reason
            assert found == reason, f"{path.name} is {found}, not {reason}"


@contextmanager
def _clip(cls: type) -> Iterator[OpenVideo]:
    """Sixteen grey frames of 56x84 at four a second, each brighter than the one before."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, np.broadcast_to(_LEVELS[:, None, None, None], (16, 56, 84, 3)).copy(), fps=4.0)
        with make(cls).open(path, 2**26, Deadline(30, "clip.mp4")) as video:
            yield video
