"""Decoding ahead: order, damage, hanging decoders, back-pressure."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from keyekit.data.cache import MediaCache
from keyekit.data.decode_pool import DecodePool, decoded_ahead
from keyekit.data.errors import BadData
from keyekit.data.media import Frames
from keyekit.data.reader import MediaReader
from keyekit.data.sample import ContentItem
from keyekit.data.sampling import UniformFps

READER = MediaReader(frame_sampler=UniformFps(max_frames=8), min_frame_tokens=4, max_frame_tokens=4)


def clip(path: Path, **options) -> ContentItem:
    return ContentItem(kind="video", path=path, options=options)


def size_of(path: Path) -> int:
    """Bytes of a file, which another process may just have renamed."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class Moody(UniformFps):
    """Hangs when nine frames are wanted at least, ends its process when ten are."""

    def adapted(self, options: dict) -> UniformFps:
        if options.get("min_frames") == 9:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        if options.get("min_frames") == 10:
            os._exit(9)
        return UniformFps(**options)


def test_media_come_in_order_whatever_becomes_of_single_ones(media, tmp_path) -> None:
    cache = MediaCache(tmp_path, dataclasses.replace(READER, frame_sampler=Moody()), seconds=2.0)
    items = [clip(media / "clip0.mp4", min_frames=n % 8 + 4, max_frames=12) for n in range(16)]
    items.insert(3, clip(media / "none.mp4"))
    with DecodePool(cache, workers=2) as pool:
        results = list(pool.decode(items))
        again = list(pool.decode(items))
    reasons = {5: "slow_media", 6: "broken_media"}
    for outcomes in (results, again):
        missing = outcomes[3]
        assert isinstance(missing, BadData)
        assert missing.reason == "missing_media"
        for number, outcome in enumerate([*outcomes[:3], *outcomes[4:]]):
            reason = outcome.reason if isinstance(outcome, BadData) else None
            assert reason == reasons.get(number % 8)
            if isinstance(outcome, Frames):
                expected = READER.read(clip(media / "clip0.mp4", min_frames=number % 8 + 4, max_frames=12))
                np.testing.assert_array_equal(outcome.pixels, expected.pixels)
    assert not [child for child in multiprocessing.active_children() if "Spawn" in child.name and child.is_alive()]


def test_a_slow_reader_is_not_run_ahead_of(media, tmp_path) -> None:
    cache, read = MediaCache(tmp_path, READER), []

    def items() -> Iterator[ContentItem]:
        for number in range(40):
            read.append(number)
            yield clip(media / "clip0.mp4", max_frames=4 + number % 5)

    with DecodePool(cache, workers=2) as pool:
        stream = pool.decode(items(), ahead=4)
        for taken in range(1, 6):
            next(stream)
            assert len(read) <= taken + 4


def test_groups_come_in_order_with_their_media_stored_and_each_is_decoded_once(media, tmp_path, monkeypatch) -> None:
    cache, submitted = MediaCache(tmp_path, READER), []
    known, other = clip(media / "clip1.mp4"), [clip(media / "clip0.mp4", max_frames=n) for n in (4, 5, 6, 7)]
    cache.load(known)
    missing = clip(media / "none.mp4")
    groups = {
        "a": [other[0], other[1]],
        "b": [],
        "c": [known],
        "d": [other[1], missing, other[2], other[2]],
        "e": [other[3]],
    }
    with DecodePool(cache, workers=2) as pool:
        wait = pool.ensure
        monkeypatch.setattr(pool, "ensure", lambda items, ahead: wait((submitted.append(i) or i for i in items), ahead))
        seen = []
        for name in pool.groups(groups, lambda name: groups[name], ahead=3):
            seen.append(name)
            assert all(cache.holds(READER.key(item)) for item in groups[name] if item is not missing)
    assert seen == list(groups)
    assert submitted == [other[0], other[1], None, None, missing, other[2], other[3]]


def test_processes_start_with_the_first_medium_that_is_missing_and_end_with_the_last_group(media, tmp_path) -> None:
    cache = MediaCache(tmp_path, READER)
    items = [clip(media / "clip0.mp4", max_frames=4 + n) for n in range(5)]
    cache.load(items[0])

    def processes() -> int:
        return len([child for child in multiprocessing.active_children() if child.is_alive()])

    before, counts = processes(), []
    for _ in decoded_ahead(items, lambda item: [item], cache, workers=1):
        counts.append(processes() - before)
    assert counts == [0, 1, 1, 1, 1]
    assert processes() == before
    assert list(decoded_ahead(items, lambda item: [item], cache, workers=1)) == items
    given_up = decoded_ahead(
        items, lambda item: [dataclasses.replace(item, options={"max_frames": 16})], cache, workers=1
    )
    assert next(given_up) == items[0]
    given_up.close()
    assert processes() == before


def test_without_workers_nothing_is_decoded_ahead(media, tmp_path) -> None:
    cache, item = MediaCache(tmp_path, READER), clip(media / "clip0.mp4")
    assert list(decoded_ahead([item], lambda item: [item], cache, workers=0)) == [item]
    assert not cache.holds(READER.key(item))


def test_a_shared_memory_cache_stays_small(media) -> None:
    folder = Path(f"/dev/shm/keyekit-test-{os.getpid()}")
    cache = MediaCache(folder, READER, max_bytes=200_000)
    items = [clip(media / f"clip{n % 3}.mp4", max_frames=4 + n % 12) for n in range(60)]
    try:
        with DecodePool(cache, workers=2) as pool:
            for item, frames in zip(items, pool.decode(items), strict=True):
                assert isinstance(frames, Frames)
                np.testing.assert_array_equal(frames.pixels, READER.read(item).pixels)
                assert sum(size_of(path) for path in folder.iterdir()) < 2 * 200_000
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


DAMAGES = {
    "truncated": lambda data, random: data[: int(len(data) * random.uniform(0.05, 0.9))],
    "flipped bytes": lambda data, random: bytes(
        byte ^ 0xFF if hit else byte for byte, hit in zip(data, random.random(len(data)) < 0.02, strict=True)
    ),
    "wrong kind": lambda data, random: b"\x89PNG\r\n\x1a\n" + data[8:200],
    "empty": lambda data, random: b"",
    "absurd header": lambda data, random: data[:4] + b"ftyp" + b"\xff" * 200 + data[208:],
}


@pytest.mark.parametrize("count", [int(os.environ.get("KEYEKIT_DAMAGED_FILES", "60"))])
def test_damaged_files_among_good_ones_are_counted_and_nothing_stops(media, tmp_path, count) -> None:
    """``KEYEKIT_DAMAGED_FILES=1000`` runs the whole proof."""
    data, random = (media / "clip0.mp4").read_bytes(), np.random.default_rng(0)
    items = []
    for number in range(count):
        damaged = tmp_path / f"{number}.mp4"
        damaged.write_bytes(list(DAMAGES.values())[number % len(DAMAGES)](data, random))
        items += [clip(damaged), clip(media / f"clip{number % 3}.mp4", max_frames=4 + number % 8)]
    reasons: Counter[str] = Counter()
    memory = []
    with DecodePool(MediaCache(tmp_path / "cache", READER, max_bytes=10**7, seconds=20.0), workers=2) as pool:
        for number, outcome in enumerate(pool.decode(items)):
            if isinstance(outcome, BadData):
                reasons[outcome.reason] += 1
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            assert isinstance(outcome, Frames) or number % 2 == 0  # no good file suffers
    assert sum(reasons.values()) >= 0.75 * count  # a flipped byte may leave a picture that decodes
    assert set(reasons) <= {"broken_media", "empty_video", "media_too_large", "bad_media", "slow_media"}
    assert memory[-1] - memory[len(memory) // 4] < 64_000  # KiB
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]
    print(f"{count} damaged files: {dict(reasons)}")
