"""Packing against first fit, choosing frames against decoding all to RGB, the cache against decoding again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from keyekit.data.cache import MediaCache, MediaReader
from keyekit.data.media import read_video
from keyekit.data.packing import plan_packs
from keyekit.data.sample import ContentItem
from keyekit.data.sampling import UniformFps
from keyekit.data.world.files import write_video

BUDGET = 4096


def first_fit(lengths: list[int], budget: int) -> list[list[int]]:
    """Each sample, as it arrives, into the first pack with room for it; no pack is ever closed."""
    packs: list[list[int]] = []
    spaces: list[int] = []
    for index, length in enumerate(lengths):
        place = next((place for place, space in enumerate(spaces) if space >= length), len(spaces))
        if place == len(spaces):
            packs.append([])
            spaces.append(budget)
        packs[place].append(index)
        spaces[place] -= length
    return packs


def next_fit(lengths: list[int], budget: int) -> list[list[int]]:
    """Each sample, as it arrives, behind the last one; a new pack when it does not fit."""
    packs: list[list[int]] = [[]]
    space = budget
    for index, length in enumerate(lengths):
        if length > space:
            packs.append([])
            space = budget
        packs[-1].append(index)
        space -= length
    return packs


PACKERS = {"first fit, no pack ever closed": first_fit, "next fit, one pack open": next_fit}


@pytest.mark.parametrize("peer", PACKERS)
def test_packing(timed, row: str, peer: str) -> None:
    drawn = np.random.default_rng(0).lognormal(mean=6.5, sigma=0.8, size=4000)  # many short samples, a few long ones
    lengths = drawn.clip(16, BUDGET).astype(int).tolist()
    calls = {"keyekit": lambda: plan_packs(lengths, BUDGET, seed=0), "peer": lambda: PACKERS[peer](lengths, BUDGET)}
    packs = calls[row]()
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert max(sum(lengths[index] for index in pack) for pack in packs) <= BUDGET
    note = f"{sum(lengths) / BUDGET / len(packs):.1%} filled"
    timed(f"plan_packs, 4000 samples into packs of {BUDGET}", calls[row], peer=f"{peer}, order of arrival", note=note)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds at 16 frames per second, 224 pixels wide and high: a texture that drifts."""
    texture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    write_video(path, np.stack([texture[n : n + 224, 2 * n : 2 * n + 224] for n in range(128)]), fps=16.0)
    return path


@pytest.fixture(scope="module")
def reading(clip: Path) -> dict[str, Callable[[], np.ndarray]]:
    sampler = UniformFps(fps=2.0)
    wanted = sampler.select(128, 16.0)

    def ours() -> np.ndarray:
        return read_video(clip, sampler).pixels

    def theirs() -> np.ndarray:
        with av.open(str(clip)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames)[wanted]

    np.testing.assert_allclose(ours().astype(int), theirs().astype(int), atol=2)
    return {"keyekit": ours, "peer": theirs}


def test_reading(reading, timed, row: str) -> None:
    timed("read_video, 16 of 128 frames", reading[row], peer="PyAV, every frame decoded to RGB")


@pytest.fixture(scope="module")
def loading(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable]:
    reader = MediaReader(frame_sampler=UniformFps(fps=2.0))
    cache, item = MediaCache(tmp_path_factory.mktemp("cache"), reader), ContentItem(kind="video", path=clip)
    np.testing.assert_array_equal(cache.load(item).pixels, reader.read(item).pixels)
    return {"keyekit": lambda: cache.load(item), "peer": lambda: reader.read(item)}


def test_loading(loading, timed, row: str) -> None:
    timed("MediaCache.load, stored before", loading[row], peer="MediaReader.read, decoding each time")
