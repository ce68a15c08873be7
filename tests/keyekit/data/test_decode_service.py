"""Decoding on a Ray cluster, and what happens when it goes away."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from keyekit.data.cache import MediaCache
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


@pytest.mark.parametrize("address", ["auto", "head:10001", "ray://head", "ray://:10001"])
def test_only_a_client_server_is_an_address(address) -> None:
    with pytest.raises(ValueError, match="ray start --head --ray-client-server-port=10001"):
        DecodeService(READER, address)


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="decoders=0"):
        DecodeService(READER, decoders=0)
    with pytest.raises(ValueError, match="look_again=0"):
        DecodeService(READER, look_again=0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Head:
    """The head of a cluster, in processes of its own, which can be killed and started anew."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.client_port = folder, free_port(), free_port()
        self.address = f"ray://127.0.0.1:{self.client_port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        words = ["start", "--head", f"--port={self.port}", f"--ray-client-server-port={self.client_port}", "--block"]
        words += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={self.folder}"]
        paths = os.pathsep.join(filter(None, sys.path))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": paths},
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.client_port), timeout=1).close()
                return
            time.sleep(0.1)
        raise TimeoutError("the head does not come up")

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        if self.process is None:
            return
        found = [self.process.pid]
        for pid in found:
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found += [int(child) for child in (task / "children").read_text().split()]
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


@pytest.fixture
def head():
    pytest.importorskip("ray", reason="the extra keyekit[ray] is not installed")
    with tempfile.TemporaryDirectory() as folder:  # a short path: Ray's sockets lie in it
        made = Head(Path(folder))
        yield made
        made.kill()


@pytest.mark.slow
@pytest.mark.timeout(290)
@pytest.mark.filterwarnings("ignore")
def test_a_service_that_is_killed_loses_no_medium_and_is_taken_again_when_it_is_back(media, head, caplog) -> None:
    items = clips(media, 60)
    items.insert(2, ContentItem(kind="video", path=media / "none.mp4"))
    expected = [None if item.path == media / "none.mp4" else READER.read(item).pixels for item in items]
    with pytest.raises(ConnectionError, match="is the head of the cluster up"):
        DecodeService(READER, head.address)
    head.start()
    with DecodeService(READER, head.address, decoders=2, look_again=0.2) as service:
        stream = service.decode(items, ahead=4)
        results = [next(stream) for _ in range(9)]
        assert service.away == 0.0
        head.kill()
        results += [next(stream) for _ in range(9)]
        assert service.away > 0
        head.start()
        while service.away and len(results) < 50:
            results.append(next(stream))
            time.sleep(0.2)
        assert len(results) < 50, "the service is not taken again"
        results += list(stream)
    assert isinstance(results[2], BadData)
    assert results[2].reason == "missing_media"
    for result, pixels in zip(results, expected, strict=True):
        if pixels is not None:
            assert isinstance(result, Frames)
            np.testing.assert_array_equal(result.pixels, pixels)
    warnings = [record.getMessage() for record in caplog.records if record.name == "keyekit.data.decode_service"]
    assert len(warnings) == 2
    assert "media are decoded in this process until it is back" in warnings[0]
    assert warnings[1] == "the decoding service is back"


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore")
def test_media_of_a_service_go_into_the_cache(media, head, tmp_path) -> None:
    head.start()
    items = clips(media, 6)
    missing = ContentItem(kind="video", path=media / "none.mp4")
    cache = MediaCache(tmp_path, READER)
    with DecodeService(READER, head.address, decoders=1) as service:
        problems = list(service.ensure([items[0], None, missing, *items[1:]], cache))
    assert [None if problem is None else problem.reason for problem in problems] == [None, None, "missing_media"] + [
        None
    ] * 5
    for item in items:
        assert cache.holds(READER.key(item))
        np.testing.assert_array_equal(cache.load(item).pixels, READER.read(item).pixels)
