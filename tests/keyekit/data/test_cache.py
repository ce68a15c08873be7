"""The cache of decoded media."""

import dataclasses
import errno
import hashlib
import inspect
import os
from functools import partial

import numpy as np
import pytest

from keyekit.data import cache as cache_module
from keyekit.data import reader as reader_module
from keyekit.data.cache import MediaCache
from keyekit.data.errors import BadData
from keyekit.data.processes import WorkerPool
from keyekit.data.reader import MediaReader
from keyekit.data.sample import ContentItem
from keyekit.data.sampling import UniformFps
from keyekit.data.slow_fast import SlowFast
from keyekit.data.world.files import write_video

READER = MediaReader(frame_sampler=UniformFps(max_frames=8), min_frame_tokens=4, max_frame_tokens=4)


def clip(media, name: str = "clip0.mp4", **options) -> ContentItem:
    return ContentItem(kind="video", path=media / name, options=options)


def test_a_medium_is_decoded_once_and_comes_back_equal(media, tmp_path, monkeypatch) -> None:
    store = MediaCache(tmp_path, READER)
    first = store.load(clip(media))
    monkeypatch.setattr(reader_module, "read_video", lambda *_: pytest.fail("decoded twice"))
    again = store.load(clip(media))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert (first.timestamps, first.fps) == (again.timestamps, again.fps)
    shape = store.describe(clip(media), READER.key(clip(media)))
    assert tuple(shape) == (8, 56, 56, first.timestamps, 2.0, (), 0, 0)
    assert shape.runs == ((8, 56, 56),)


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


def test_slow_and_fast_frames_keep_their_sizes(tmp_path) -> None:
    frames = np.full((16, 280, 280, 3), 255, np.uint8)
    frames[6:12] = (60, 0, 0)
    write_video(tmp_path / "cuts.mp4", frames, fps=4.0)
    item = ContentItem(kind="video", path=tmp_path / "cuts.mp4")
    store = MediaCache(
        tmp_path / "store", MediaReader(frame_sampler=SlowFast(), min_frame_tokens=4, max_frame_tokens=100)
    )
    read = store.reader.read(item)
    for _ in range(2):  # decoded, then from the disk
        loaded = store.load(item)
        assert (loaded.timestamps, loaded.fps, loaded.fast) == (read.timestamps, read.fps, read.fast)
        for run, expected in zip(loaded.runs, read.runs, strict=True):
            np.testing.assert_array_equal(run, expected)
    shape = store.describe(item, store.reader.key(item))
    assert shape.fast == (False, True, True, False, True, True, False, True)
    assert shape.runs == tuple(run.shape[:3] for run in read.runs)
    assert [frames for frames, _, _ in shape.runs] == [1, 2, 1, 2, 1, 1]
    assert (shape.height, shape.width, shape.fast_height, shape.fast_width) == (280, 280, 140, 140)
    with pytest.raises(ValueError, match="run by run"):
        _ = loaded.pixels


def stored(folder) -> dict[str, int]:
    return {path.stem: path.stat().st_size for path in folder.glob("*.frames")}


def test_a_full_cache_drops_the_pixels_that_were_not_used_for_longest(media, tmp_path) -> None:
    items = [clip(media, max_frames=frames) for frames in (4, 6, 8, 10)]
    sizes = [READER.read(item).pixels.nbytes for item in items]
    store = MediaCache(tmp_path, READER, max_bytes=int(sum(sizes) * 0.9))
    keys = [READER.key(item) for item in items]
    for item in items[:3]:
        store.load(item)
    old = store.load(items[0])
    for key, second in zip(keys[:3], (3, 1, 2), strict=True):
        os.utime(tmp_path / f"{key}.frames", (second, second))
    store.load(items[3])
    sizes_now = stored(tmp_path)
    assert sizes_now[keys[1]] < 200 < sizes[0] < sizes_now[keys[0]]
    assert sum(sizes_now.values()) <= store.max_bytes
    assert store.describe(items[1], keys[1]).frames == 6  # its length is known without decoding
    assert stored(tmp_path)[keys[1]] < 200
    np.testing.assert_array_equal(store.load(items[1]).pixels, READER.read(items[1]).pixels)
    np.testing.assert_array_equal(store.load(items[0]).pixels, old.pixels)


def test_many_processes_share_a_small_cache(media, tmp_path) -> None:
    items = [clip(media, f"clip{n % 3}.mp4", min_frames=4, max_frames=4 + n % 12) for n in range(36)]
    store = MediaCache(tmp_path, READER, max_bytes=300_000)
    with WorkerPool(partial(_checksum, store), workers=3) as pool:
        sums = [outcome.result for outcome in pool.map(items * 3)]
    assert sums == [int(READER.read(item).pixels.sum()) for item in items] * 3
    assert sum(stored(tmp_path).values()) <= 2 * 300_000
    assert not list(tmp_path.glob("*.partial"))


def _checksum(store: MediaCache, item: ContentItem) -> int:
    return int(store.load(item).pixels.sum())


def test_a_full_disk_costs_time_but_no_sample(media, tmp_path, monkeypatch, caplog) -> None:
    def full(*_) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "write_frames", full)
    store = MediaCache(tmp_path, READER)
    for item in (clip(media), clip(media, "clip1.mp4")):
        np.testing.assert_array_equal(store.load(item).pixels, READER.read(item).pixels)
        assert store.describe(item, READER.key(item)).frames == 8
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "set max_bytes" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"not a medium at all" * 9, None])
def test_files_that_are_no_stored_media_are_replaced(media, tmp_path, damage) -> None:
    store = MediaCache(tmp_path, READER, max_bytes=10**9)
    first = store.load(clip(media))
    (path,) = tmp_path.glob("*.frames")
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    np.testing.assert_array_equal(store.load(clip(media)).pixels, first.pixels)
    assert store.prepare([clip(media)]) == {}


def test_a_file_that_takes_too_long_is_reported_and_not_tried_again(media, tmp_path) -> None:
    store = MediaCache(tmp_path, dataclasses.replace(READER, frame_sampler=Slow()), seconds=1.0)
    items = [clip(media, "clip0.mp4", min_frames=1 + n) for n in range(70)]
    failures = store.prepare(items, workers=2)
    assert [(error.reason, "within 1 s" in str(error)) for error in failures.values()] == [("slow_media", True)]
    with pytest.raises(BadData, match="not decoded within 1 s"):
        store.load(items[4])


class Slow(UniformFps):
    """Hangs on one of the videos."""

    def adapted(self, options: dict) -> UniformFps:
        if options["min_frames"] == 5:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        return UniformFps(**options)
