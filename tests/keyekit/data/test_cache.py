"""The cache of decoded media."""

import dataclasses

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
    assert len(list(tmp_path.glob("*.npy"))) == 45
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
