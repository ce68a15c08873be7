"""What every open video does with what a decoder hands out."""

import numpy as np

from keyekit.data.processing.resize import resize_frames
from keyekit.data.sampling import VideoFacts
from keyekit.data.video.base import OpenVideo


class Grey(OpenVideo):
    """Frame ``n`` is grey of level ``n``; notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(VideoFacts(num_frames=10, fps=1.0, height=8, width=8), np.arange(10.0))
        self.asked: list = []
        self.closed = False

    def decoded(self, wanted, sizes, interpolation):
        self.asked.append((list(wanted), list(sizes)))
        for index, size in zip(wanted, sizes, strict=True):
            yield np.full((*(size or (8, 8)), 3), index, np.uint8)

    def close(self) -> None:
        self.closed = True


def test_a_frame_that_comes_twice_is_decoded_once() -> None:
    with Grey() as video:
        assert [int(picture[0, 0, 0]) for picture in video.frames([1, 4, 4, 4, 9])] == [1, 4, 4, 4, 9]
    assert video.asked == [([1, 4, 9], [None] * 3)]
    assert video.closed
    assert list(video.frames([])) == []


def test_exact_resizing_is_left_to_pillow() -> None:
    video = Grey()
    (fused,) = video.frames([5], [(4, 6)])
    (exact,) = video.frames([5], [(4, 6)], "bilinear", "exact")
    assert video.asked == [([5], [(4, 6)]), ([5], [None])]
    np.testing.assert_array_equal(exact, resize_frames(np.full((1, 8, 8, 3), 5, np.uint8), 4, 6, "bilinear")[0])
    np.testing.assert_array_equal(fused, exact)
