"""The cache of decoded media."""

import dataclasses
import inspect
import os

import numpy as np
import pytest

from keyekit.data import cache as cache_module
from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.errors import BadData
from keyekit.data.sample import ContentItem
from keyekit.data.sampling import UniformFps

READER = MediaReader(frame_sampler=UniformFps(max_frames=8), min_frame_tokens=4, max_frame_tokens=4)


def clip(media, name: str = "clip0.mp4", **options) -> ContentItem:
    return ContentItem(kind="video", path=media / name, options=options)


def test_a_medium_is_decoded_once_and_comes_back_equal(media, tmp_path, monkeypatch) -> None:
    store = MediaCache(tmp_path, READER)
    first = store.load(clip(media))
    monkeypatch.setattr(cache_module, "read_video", lambda *_: pytest.fail("decoded twice"))
    again = store.load(clip(media))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert (first.timestamps, first.fps) == (again.timestamps, again.fps)
    shape = store.describe(clip(media), READER.key(clip(media)))
    assert tuple(shape) == (8, 56, 56, first.timestamps, 2.0)


def test_the_key_follows_file_settings_and_options(media, tmp_path) -> None:
    keys = {READER.key(clip(media)), READER.key(clip(media, "clip1.mp4")), READER.key(clip(media, fps=1.0))}
    keys.add(dataclasses.replace(READER, max_frame_tokens=9).key(clip(media)))
    keys.add(dataclasses.replace(READER, frame_sampler=UniformFps(max_frames=4)).key(clip(media)))
    assert len(keys) == 5
    copy = tmp_path / "c.mp4"
    copy.write_bytes((media / "clip0.mp4").read_bytes())
    before = READER.key(ContentItem(kind="video", path=copy))
    copy.write_bytes((media / "clip1.mp4").read_bytes())
    assert READER.key(ContentItem(kind="video", path=copy)) != before


def test_prepare_decodes_in_processes_and_reports_what_is_broken(media, tmp_path) -> None:
    names = ["clip0.mp4", "clip1.mp4", "clip2.mp4", "cut.mp4", "none.mp4"]
    items = [clip(media, name, max_frames=4 + n % 15) for n in range(15) for name in names]
    store, steps = MediaCache(tmp_path, READER), []
    failures = store.prepare(items, workers=2, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (75, 75)
    assert {error.reason for error in failures.values()} == {"broken_media", "missing_media"}
    assert len(failures) == 30
    assert len(list(tmp_path.glob("*.frames"))) == 45
    assert not list(tmp_path.glob("*.partial"))
    alone = MediaCache(tmp_path / "alone", READER)
    np.testing.assert_array_equal(store.load(items[0]).pixels, alone.load(items[0]).pixels)


def test_samples_may_set_their_own_limits(media, tmp_path) -> None:
    store = MediaCache(tmp_path, MediaReader(min_image_tokens=4, max_image_tokens=64))
    wide = ContentItem(kind="image", path=media / "wide.png", options={"max_pixels": 4 * 784})
    assert store.load(wide).pixels.shape == (1, 28, 56, 3)
    assert store.load(dataclasses.replace(wide, options={})).pixels.shape == (1, 56, 84, 3)
    with pytest.raises(BadData, match="unknown image option zoom"):
        store.load(dataclasses.replace(wide, options={"zoom": 2}))
    with pytest.raises(BadData, match="unknown video option zoom"):
        store.load(clip(media, zoom=2))


def test_a_file_that_kills_its_process_is_reported_and_not_tried_again(media, tmp_path) -> None:
    store = MediaCache(tmp_path, dataclasses.replace(READER, frame_sampler=Deadly()))
    names = ["clip0.mp4", "clip1.mp4", "clip2.mp4"]
    items = [clip(media, name, min_frames=1 + n) for n in range(24) for name in names]
    failures = store.prepare(items, workers=2)
    (key,) = failures
    assert key == store.reader.key(items[5])
    assert (failures[key].reason, "kills the process" in str(failures[key])) == ("broken_media", True)
    assert len(list(tmp_path.glob("*.frames"))) == len(items) - 1
    with pytest.raises(BadData, match="kills the process"):
        store.load(items[5])


class Deadly(UniformFps):
    """Ends the process on one of the videos."""

    def adapted(self, options: dict) -> UniformFps:
        if options["min_frames"] == 2 and self.armed():
            os._exit(9)
        return UniformFps(**options)

    def armed(self) -> bool:
        name = inspect.currentframe().f_back.f_back.f_locals["item"].path.name  # pyright: ignore
        return name == "clip2.mp4"


def test_an_empty_file_in_the_cache_is_replaced(media, tmp_path) -> None:
    store = MediaCache(tmp_path, READER)
    first = store.load(clip(media))
    (stored,) = tmp_path.glob("*.frames")
    stored.write_bytes(b"")
    np.testing.assert_array_equal(store.load(clip(media)).pixels, first.pixels)
    stored.write_bytes(b"")
    assert store.prepare([clip(media)]) == {}
    assert stored.stat().st_size > 0


def test_names_that_no_file_can_have_are_missing(tmp_path) -> None:
    store = MediaCache(tmp_path, READER)
    for name in ("a\0b.mp4", "a" * 5000, "\ud800.mp4"):
        with pytest.raises(BadData) as caught:
            store.load(clip(tmp_path, name))
        assert caught.value.reason == "missing_media"


def test_a_sample_cannot_ask_for_a_picture_larger_than_the_limit(media, tmp_path) -> None:
    store = MediaCache(tmp_path, MediaReader())
    wide = ContentItem(kind="image", path=media / "wide.png", options={"min_pixels": 10**13})
    with pytest.raises(BadData, match="lower min_pixels"):
        store.load(wide)


@pytest.mark.parametrize(("num_frames", "tokens"), [(32, 720), (300, 180), (768, 120)])
def test_many_frames_share_a_budget(media, monkeypatch, num_frames: int, tokens: int) -> None:
    # Keye-VL 8B sheet 2.2 item 4: a source of 720x1280 under a budget of 28,800 tokens
    monkeypatch.setattr(cache_module, "read_video", lambda path, sampler, limit, size: size(720, 1280, num_frames))
    height, width = MediaReader(max_video_tokens=28_800).read(clip(media))  # pyright: ignore
    assert height * width // 784 == tokens
