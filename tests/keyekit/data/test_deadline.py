"""Time limits."""

import time

import pytest

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData


def test_a_limit_passes() -> None:
    deadline = Deadline(0.02, "clip.mp4")
    deadline.check()
    assert deadline.left is not None
    assert 0 < deadline.left <= 0.02
    time.sleep(0.03)
    assert deadline.passed
    assert deadline.left == 0.001
    with pytest.raises(BadData, match=r"clip.mp4 is not read after 0.02 seconds") as caught:
        deadline.check()
    assert caught.value.reason == "timed_out"


def test_without_a_limit_nothing_passes() -> None:
    deadline = Deadline(None, "clip.mp4")
    deadline.check()
    assert (deadline.left, deadline.passed) == (None, False)
    with pytest.raises(ValueError, match="more than 0 seconds"):
        Deadline(0, "clip.mp4")
