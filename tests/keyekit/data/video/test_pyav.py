"""Decoding with PyAV: the frames of plain sequential decoding, by a shorter way, from files of every kind."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from keyekit.data.deadline import Deadline
from keyekit.data.errors import BadData
from keyekit.data.processing.resize import resize_frames
from keyekit.data.video.pyav import PyAV

UNEVEN = np.cumsum(np.random.default_rng(0).integers(5, 120, 120)).tolist()
CLIPS = {
    "b-frames": ("b.mp4", {"g": "30", "bf": "3", "preset": "veryfast", "sc_threshold": "0"}),
    "pyramid": ("pyramid.mp4", {"g": "40", "bf": "7", "preset": "fast", "b_strategy": "2", "sc_threshold": "0"}),
    "open groups": ("open.mp4", {"g": "24", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "open groups, Matroska": ("open.mkv", {"g": "24", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "one group": ("one.mp4", {"g": "600", "preset": "ultrafast"}),
    "all keyframes": ("intra.mp4", {"g": "1", "preset": "ultrafast"}),
    "transport stream": ("b.ts", {"g": "30", "bf": "2", "preset": "veryfast"}),
    "fragments": ("b.mov", {"g": "30", "bf": "2", "preset": "veryfast"}),
    "uneven": ("uneven.mp4", {"times": UNEVEN, "g": "30", "bf": "3", "preset": "veryfast"}),
    "uneven, Matroska": ("uneven.mkv", {"times": UNEVEN, "g": "30", "bf": "3", "preset": "veryfast"}),
    "HEVC": (
        "h.mp4",
        {"codec": "libx265", "g": "30", "preset": "ultrafast", "x265-params": "log-level=none:bframes=4"},
    ),
    "VP9": ("v.webm", {"codec": "libvpx-vp9", "g": "30", "cpu-used": "8", "deadline": "realtime"}),
    "MPEG-4 in AVI": ("m.avi", {"codec": "mpeg4", "g": "12", "bf": "2"}),
    "bare H.264": ("bare.h264", {"g": "30", "bf": "2", "preset": "veryfast"}),
    "motion JPEG": ("j.avi", {"codec": "mjpeg"}),
}
CHOICES = (
    [0],
    [119],
    [0, 119],
    [3, 4, 5, 61, 118],
    [29, 30, 31, 59, 60, 61],
    list(range(0, 120, 12)),
    list(range(120)),
)


def opened(path, seconds: float | None = None, max_pixels: int = 2**26, scan: bool = False, **settings):
    return PyAV(**settings).open(path, max_pixels, Deadline(seconds, str(path)), scan)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", CLIPS)
def test_frames_are_those_of_sequential_decoding(encode, sequential, kind: str, threads: int) -> None:
    name, options = CLIPS[kind]
    path = encode(name, 120, **options)  # once: an encoder need not write the same bytes twice
    pictures, seconds = sequential(path)
    with opened(path, threads=threads, seek_cost=4) as video:
        assert video.facts.num_frames == len(pictures) == 120
        if kind != "bare H.264":  # has no times
            np.testing.assert_allclose(video.seconds, seconds, atol=1e-6)
        for wanted in CHOICES:
            found = list(video.frames(wanted))
            assert len(found) == len(wanted)
            for index, picture in zip(wanted, found, strict=True):
                np.testing.assert_array_equal(picture, pictures[index], err_msg=f"frame {index} of {wanted}")


@pytest.mark.parametrize("kind", ["b-frames", "uneven", "open groups"])
def test_an_index_and_a_scan_tell_the_same(encode, kind: str) -> None:
    name, options = CLIPS[kind]
    path = encode(name, 120, **options)
    with opened(path) as by_index, opened(path, scan=True) as by_scan:
        np.testing.assert_array_equal(by_index.seconds, by_scan.seconds)
        assert by_index.facts.num_frames == by_scan.facts.num_frames


def test_sparse_frames_are_jumped_to(monkeypatch, encode, number_of) -> None:
    def decoded_packets(monkeypatch, path, wanted: list[int]) -> int:
        with opened(path) as video:
            deadline, count = video._deadline, []
            monkeypatch.setattr(deadline, "check", lambda: count.append(1))
            assert [number_of(picture) for picture in video.frames(wanted)] == wanted
        return len(count)

    path = encode("long.mp4", 1000, g="100", preset="ultrafast", sc_threshold="0")
    assert decoded_packets(monkeypatch, path, [5, 505, 901]) <= 30
    assert decoded_packets(monkeypatch, path, list(range(0, 500, 12))) >= 490  # dense: nothing is gained by jumping


def test_pictures_that_nobody_needs_are_not_decoded(monkeypatch, encode, number_of) -> None:
    path = encode("b.mp4", 120, g="30", bf="3", preset="veryfast", sc_threshold="0")
    shown: list[int] = []
    with opened(path) as video:
        whole = video._check_whole
        monkeypatch.setattr(video, "_check_whole", lambda frame: (shown.append(frame.pts), whole(frame)))
        assert [number_of(picture) for picture in video.frames([0, 60, 119])] == [0, 60, 119]
    assert len(shown) < 90  # of 120: at least every fourth is a B-frame that no other refers to


class Late:
    """A container in which a jump ends some frames late, between two keyframes."""

    def __init__(self, container, ticks: int) -> None:
        self.container = container
        self.ticks = ticks

    def __getattr__(self, name: str):
        return getattr(self.container, name)

    def seek(self, ticks: int, **options) -> None:
        self.container.seek(ticks + self.ticks if ticks > 0 else ticks, any_frame=True, **options)


def test_a_jump_that_ends_between_keyframes_is_tried_from_an_earlier_one(encode, sequential) -> None:
    """MPEG-4 decoders begin anywhere, and guess: nothing in such a picture says that it is wrong."""
    path = encode("late.mp4", 120, codec="mpeg4", g="12")
    pictures, _ = sequential(path)
    with opened(path, seek_cost=4) as video:
        tick = int(video._table.ticks[1] - video._table.ticks[0])
        video._container = Late(video._container, 2 * tick)
        for wanted in CHOICES:
            for index, picture in zip(wanted, video.frames(wanted), strict=True):
                np.testing.assert_array_equal(picture, pictures[index], err_msg=f"frame {index} of {wanted}")


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotated_videos_stand_upright(encode, sequential, rotation: int, turns: int) -> None:
    path = encode(f"turned{turns}.mp4", 10, rotation=rotation)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation % 360 == rotation % 360
    pictures, _ = sequential(path)
    with opened(path) as video:
        size = (112, 64) if turns % 2 else (64, 112)
        assert (video.facts.height, video.facts.width) == size
        for index, picture in enumerate(video.frames(range(10))):
            np.testing.assert_array_equal(picture, np.rot90(pictures[index], turns))
        smaller = (56, 28) if turns % 2 else (28, 56)
        found = next(video.frames([3], [smaller]))
        expected = resize_frames(np.ascontiguousarray(np.rot90(pictures[3], turns))[None], *smaller)[0]
        assert next(video.decoded([3], [smaller], "bicubic")).shape == found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(28, 56), (84, 140), (64, 56)])
def test_one_step_to_the_final_size_is_antialiased(tmp_path, interpolation, size) -> None:
    """On grey pictures, where colour conversion is exact, the scaler of FFmpeg against Pillow."""
    random = np.random.default_rng(0)
    grey = resize_frames(random.integers(40, 210, (1, 16, 28, 3), dtype=np.uint8)[..., :1].repeat(3, -1), 64, 112)
    path = tmp_path / "grey.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 112, "yuv444p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey[0], format="rgb24")))
        container.mux(stream.encode())
    with opened(path) as video:
        own = next(video.frames([0]))
        found = next(video.frames([0], [size], interpolation))
        expected = resize_frames(own[None], *size, interpolation)[0]
        assert np.abs(found.astype(int) - expected).max() <= (
            6 if interpolation == "bicubic" else 2
        )  # Keys with 0.6 and 0.5
        exact = next(video.frames([0], [size], interpolation, "exact"))
        np.testing.assert_array_equal(exact, expected)


def test_frames_may_come_twice_and_in_several_sizes(encode) -> None:
    with opened(encode("b.mp4", 120, g="30", bf="3", preset="veryfast")) as video:
        sizes = [(28, 28), (56, 56), (28, 28), (28, 28)]
        found = list(video.frames([0, 7, 7, 90], [sizes[0], sizes[1], sizes[1], sizes[3]]))
        assert [picture.shape[:2] for picture in found] == [(28, 28), (56, 56), (56, 56), (28, 28)]
        np.testing.assert_array_equal(found[1], found[2])


def test_a_recording_that_begins_between_keyframes(encode, sequential, tmp_path) -> None:
    """Broadcast is cut anywhere: what comes before the first keyframe cannot be decoded, the rest can."""
    whole = encode("b.ts", 120, g="30", bf="2", preset="veryfast")
    pictures, _ = sequential(whole)
    with av.open(str(whole)) as read, av.open(str(tmp_path / "cut.ts"), "w") as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(read.demux(video=0)):
            if number >= 10 and packet.size:
                packet.stream = copy
                write.mux(packet)
    with opened(tmp_path / "cut.ts") as video:
        assert video.facts.num_frames == 90
        for index in (0, 1, 45, 89):
            np.testing.assert_array_equal(next(video.frames([index])), pictures[30 + index])


def test_a_time_limit_ends_reading(encode) -> None:
    path = encode("b.mp4", 120, g="30", bf="3", preset="veryfast")
    with pytest.raises(BadData, match="raise time_limit") as caught, opened(path, seconds=1e-9):
        pass
    assert caught.value.reason == "timed_out"
    with opened(path, seconds=60) as video:
        frames = video.frames(range(120))
        next(frames)
        video._deadline._end = 0.0
        with pytest.raises(BadData) as caught:
            list(frames)
    assert caught.value.reason == "timed_out"


def test_the_file_is_closed_whatever_happens(encode, tmp_path) -> None:
    path = encode("b.mp4", 120, g="30", bf="3", preset="veryfast")
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:2000])

    def open_files() -> int:
        links = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
        return sum(link.endswith((path.name, "cut.mp4")) for link in links)

    with opened(path) as video:
        next(video.frames([5, 50]))
        assert open_files() == 1
    for bad in (tmp_path / "cut.mp4", path):
        with pytest.raises(BadData), opened(bad, max_pixels=100):
            pass
    assert open_files() == 0


class Silent(BaseHTTPRequestHandler):
    """A server that promises a megabyte and sends nothing."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        threading.Event().wait(5)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_that_says_nothing_is_given_up() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/clip.mp4"
    with pytest.raises(BadData) as caught, opened(address, seconds=0.5):
        pass
    server.shutdown()
    assert caught.value.reason == "timed_out"


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="threads >= 1"):
        PyAV(threads=0)
