"""Lists of images as videos."""

import numpy as np
import pytest
from PIL import Image

from keyekit.data.errors import BadData
from keyekit.data.media import plan_video, read_video
from keyekit.data.processing.resize import resize_frames
from keyekit.data.sampling import FrameLimits, UniformFps


@pytest.fixture
def images(tmp_path):
    """Eight images of which the last is larger."""
    paths = []
    for number in range(8):
        side = 120 if number == 7 else 60
        pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_a_list_is_a_video_of_two_images_a_second(images) -> None:
    limits = FrameLimits.of_tokens(4, 4, 10**6)
    video = read_video(images, UniformFps(fps=2.0), limits=limits)
    assert video.pixels.shape == (8, 56, 56, 3)
    assert (video.timestamps, video.fps) == ((), 2.0)  # a rate that nobody told is good for no timestamps
    for number in (0, 7):
        own = np.asarray(Image.open(images[number]))[None]
        np.testing.assert_array_equal(video.pixels[number], resize_frames(own, 56, 56)[0])


def test_a_list_of_known_rate_has_timestamps_and_is_sampled(images) -> None:
    video = read_video(images, UniformFps(fps=2.0), list_fps=4.0)
    assert video.timestamps == (0.0, 0.5, 1.25, 1.75)
    assert video.pixels.shape == (4, 60, 60, 3)
    plan = plan_video(images, UniformFps(fps=2.0), FrameLimits.of_tokens(4, 4, 10**6), list_fps=4.0)
    assert (plan.indices, plan.seconds) == ((0, 2, 5, 7), video.timestamps)


def test_lists_that_cannot_be_read(images) -> None:
    with pytest.raises(BadData, match="no image") as caught:
        read_video([], UniformFps())
    assert caught.value.reason == "empty_video"
    with pytest.raises(BadData, match="none") as caught:
        read_video([images[0], images[0].with_name("none.png"), *images[1:]], UniformFps())
    assert caught.value.reason == "missing_media"
    with pytest.raises(ValueError, match="fps=-1"):
        read_video(images, UniformFps(), list_fps=-1.0)
