"""Decoding on a Ray cluster, and what happens when it goes away."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from keyekit.data.decode_service import DecodeService
from keyekit.data.errors import BadData
from keyekit.data.media import Frames
from keyekit.data.reader import MediaReader
from keyekit.data.sample import ContentItem
from keyekit.data.sampling import UniformFps

READER = MediaReader(frame_sampler=UniformFps(max_frames=8), min_frame_tokens=4, max_frame_tokens=4)


def clips(media: Path, count: int) -> list[ContentItem]:
    return [
        ContentItem(kind="video", path=media / f"clip{n % 3}.mp4", options={"max_frames": 4 + n % 4})
        for n in range(count)
    ]


def test_without_ray_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'keyekit\[ray\]'"):
        DecodeService(READER)


class Deadly(UniformFps):
    """Ends the process when nine frames are wanted at least."""

    def adapted(self, options: dict) -> UniformFps:
        if options.get("min_frames") == 9:
            os._exit(9)
        return UniformFps(**options)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
def test_a_medium_that_kills_its_decoder_costs_no_other(media) -> None:
    pytest.importorskip("ray", reason="the extra keyekit[ray] is not installed")
    reader = dataclasses.replace(READER, frame_sampler=Deadly())
    items = clips(media, 6)
    items[1] = dataclasses.replace(items[1], options={"min_frames": 9, "max_frames": 12})
    with DecodeService(reader, decoders=1) as service:
        results = list(service.decode(items))
    assert [isinstance(result, Frames) for result in results] == [True, False, True, True, True, True]
    assert isinstance(results[1], BadData)
    assert "ends the process that decodes it" in str(results[1])


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_dies_loses_no_medium(media, caplog) -> None:
    ray = pytest.importorskip("ray", reason="the extra keyekit[ray] is not installed")
    items = clips(media, 24)
    items.insert(2, ContentItem(kind="video", path=media / "none.mp4"))
    expected = [None if item.path == media / "none.mp4" else READER.read(item).pixels for item in items]
    with DecodeService(READER, decoders=2) as service:
        stream = service.decode(items, ahead=4)
        results = [next(stream) for _ in range(9)]
        ray.shutdown()
        results += list(stream)
    assert isinstance(results[2], BadData)
    assert results[2].reason == "missing_media"
    for result, pixels in zip(results, expected, strict=True):
        if pixels is not None:
            assert isinstance(result, Frames)
            np.testing.assert_array_equal(result.pixels, pixels)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "decoded in this process from now on" in warnings[0]
