"""Files, addresses and fsspec: the same bytes give the same pictures, wherever they lie."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData
from keyekit.data.location import identity, located, opened_video
from keyekit.data.media import read_image, read_video
from keyekit.data.sampling import UniformFps


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server(media):
    """Serves the folder of the media on this machine."""
    found = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(media)))
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()


@pytest.fixture
def memory(media):
    """The same files in a file system of fsspec."""
    system = fsspec.filesystem("memory")
    for name in ("clip0.mp4", "wide.png", "cut.mp4"):
        system.pipe(f"/media/{name}", (media / name).read_bytes())
    yield "memory://media"
    system.rm("/media", recursive=True)


def test_a_video_is_the_same_wherever_it_lies(media, server, memory) -> None:
    expected = read_video(media / "clip0.mp4", UniformFps())
    places = (str(media / "clip0.mp4"), (media / "clip0.mp4").as_uri(), f"{server}/clip0.mp4", f"{memory}/clip0.mp4")
    for place in places:
        found = read_video(place, UniformFps(), time_limit=20)
        np.testing.assert_array_equal(found.pixels, expected.pixels, err_msg=place)
        assert found.timestamps == expected.timestamps


def test_an_image_is_the_same_wherever_it_lies(media, server, memory) -> None:
    expected = read_image(media / "wide.png").pixels
    for place in (str(media / "wide.png"), f"{server}/wide.png", f"{memory}/wide.png"):
        np.testing.assert_array_equal(read_image(place, time_limit=20).pixels, expected, err_msg=place)


def test_what_is_not_there_is_missing_and_what_is_broken_is_broken(server, memory) -> None:
    for place in (server, memory):
        for read in (lambda where: read_video(where, UniformFps(), time_limit=20), partial(read_image, time_limit=20)):
            with pytest.raises(BadData, match="none") as caught:
                read(f"{place}/none.mp4")
            assert caught.value.reason == "missing_media"
        with pytest.raises(BadData, match="cut") as caught:
            read_video(f"{place}/cut.mp4", UniformFps(), time_limit=20)
        assert caught.value.reason == "broken_media"


def test_an_unknown_scheme_is_an_error_of_the_configuration() -> None:
    with pytest.raises(ValueError, match="Protocol not known: zzz"):
        read_video("zzz://bucket/clip.mp4", UniformFps())


def test_a_time_limit_holds_for_files_of_fsspec(memory) -> None:
    deadline = Deadline(60, "clip.mp4")
    with opened_video(f"{memory}/clip0.mp4", deadline) as file:
        assert len(file.read(10)) == 10
        deadline._end = 0.0
        with pytest.raises(BadData) as caught:
            file.read(10)
    assert caught.value.reason == "timed_out"


def test_the_identity_follows_the_file(media, server, memory, tmp_path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    before = identity(path)
    path.write_bytes(b"other")
    assert identity(path) != before
    assert identity(str(path)) == identity(path) == identity(path.as_uri())
    assert identity(tmp_path / "none.mp4")[1] == "missing"
    remote = identity(f"{memory}/clip0.mp4")
    fsspec.filesystem("memory").pipe("/media/clip0.mp4", b"other")
    assert identity(f"{memory}/clip0.mp4") != remote
    assert identity(f"{server}/clip0.mp4") == [f"{server}/clip0.mp4"]


def test_paths_of_a_manifest_are_relative_and_addresses_are_not() -> None:
    folder = Path("/data")
    assert located("a/b.mp4", folder) == Path("/data/a/b.mp4")
    assert located("/c.mp4", folder) == located("file:///c.mp4", folder) == Path("/c.mp4")
    assert located("https://host/a%20b.mp4", folder) == "https://host/a%20b.mp4"
    assert located("a:b.mp4", folder) == Path("/data/a:b.mp4")
