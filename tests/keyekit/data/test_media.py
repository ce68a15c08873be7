"""Reading real files, whole and broken."""

import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from keyekit.data.errors import BadData
from keyekit.data.media import Frames, _nearest, read_image, read_video
from keyekit.data.processing.resize import resize_frames
from keyekit.data.reader import MediaReader
from keyekit.data.sample import ContentItem
from keyekit.data.sampling import FrameLimits, UniformFps
from keyekit.data.slow_fast import SlowFast
from keyekit.data.world.files import write_video


def test_frames_come_with_their_times_and_contents(media) -> None:
    video = read_video(media / "clip0.mp4", UniformFps(fps=2.0))
    assert video.pixels.shape == (8, 56, 56, 3)
    assert video.pixels.dtype == np.uint8
    assert video.timestamps == (0.0, 0.5, 1.0, 1.5, 2.25, 2.75, 3.25, 3.75)
    assert video.fps == 2.0
    levels = np.linspace(20, 220, 16)[[0, 2, 4, 6, 9, 11, 13, 15]]
    np.testing.assert_allclose(video.pixels[:, 40, 40].mean(axis=1), levels, atol=6)


def test_a_container_without_frame_count_is_read_the_same(media, tmp_path) -> None:
    path = tmp_path / "copy.mkv"
    with av.open(str(media / "clip1.mp4")) as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    one, other = read_video(media / "clip1.mp4", UniformFps()), read_video(path, UniformFps())
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_allclose(one.timestamps, other.timestamps, atol=1e-3)


def test_images_are_rgb_and_transparency_is_white(media) -> None:
    assert read_image(media / "wide.png").pixels[0, 5, 5].tolist() == [200, 10, 10]
    assert read_image(media / "clear.png").pixels[0, 5, 5].tolist() == [255, 255, 255]
    clear = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    clear.convert("LA").save(media / "clear_grey.png")
    clear.convert("P").save(media / "clear_palette.png", transparency=0)
    for name in ("clear_grey.png", "clear_palette.png"):
        assert read_image(media / name).pixels[0, 5, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("name", "reason"), [("none.mp4", "missing_media"), ("cut.mp4", "broken_media"), ("noise.mp4", "broken_media")]
)
def test_bad_videos_have_a_reason(media, name: str, reason: str) -> None:
    with pytest.raises(BadData, match=name) as caught:
        read_video(media / name, UniformFps())
    assert caught.value.reason == reason


def test_a_video_that_ends_early_is_broken(media, tmp_path) -> None:
    """The index at the end survives, the pictures do not: everything after a few hundred bytes of picture data is zero."""
    data = bytearray((media / "clip0.mp4").read_bytes())
    start = data.find(b"mdat") + 400
    data[start : start + 3000] = bytes(len(data[start : start + 3000]))
    (tmp_path / "zeros.mp4").write_bytes(data)
    with pytest.raises(BadData) as caught:
        read_video(tmp_path / "zeros.mp4", UniformFps(fps=4.0))
    assert caught.value.reason == "broken_media"


def test_a_file_with_sound_alone_is_an_empty_video(tmp_path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(BadData, match=r"sound\.mp4 has no video stream; it holds audio") as caught:
        read_video(path, UniformFps())
    assert caught.value.reason == "empty_video"
    with pytest.raises(BadData) as again:
        MediaReader().read(ContentItem(kind="video", path=path))
    assert (again.value.reason, str(again.value)) == ("empty_video", str(caught.value))


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_an_image_bomb_is_refused_before_it_is_decompressed(tmp_path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    with pytest.raises(BadData) as caught:
        read_image(tmp_path / "bomb.png")
    assert caught.value.reason == "media_too_large"


def test_other_bad_images(media) -> None:
    for name, reason in (("none.png", "missing_media"), ("noise.png", "broken_media")):
        with pytest.raises(BadData) as caught:
            read_image(media / name)
        assert caught.value.reason == reason


def test_frames_over_the_pixel_limit_are_refused(media) -> None:
    with pytest.raises(BadData) as caught:
        read_video(media / "clip0.mp4", UniformFps(), max_pixels=1000)
    assert caught.value.reason == "media_too_large"


def copied(source, target, shift: float = 0.0, **options: str):
    """The same pictures in another container, ``shift`` seconds later."""
    with av.open(str(source)) as read, av.open(str(target), "w", options=options) as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                ticks = int(shift / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + ticks, packet.dts + ticks, copy
                write.mux(packet)
    return target


def test_frames_that_an_edit_list_leaves_out_are_not_missed(media, tmp_path) -> None:
    """Cut by a phone or an editor: the container promises 16 frames, of which the first second is not to be shown."""
    path = copied(media / "clip0.mp4", tmp_path / "cut.mp4", shift=-1.0, avoid_negative_ts="disabled")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 16
    video = read_video(path, UniformFps(fps=4.0))
    assert video.timestamps == tuple(n / 4 for n in range(12))
    whole = read_video(media / "clip0.mp4", UniformFps(fps=4.0))
    np.testing.assert_array_equal(video.pixels, whole.pixels[4:])


def test_times_count_from_the_first_frame(media, tmp_path) -> None:
    late = read_video(copied(media / "clip0.mp4", tmp_path / "late.mp4", shift=2.0), UniformFps())
    assert late.timestamps == read_video(media / "clip0.mp4", UniformFps()).timestamps


@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
@pytest.mark.parametrize(("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {})])
def test_files_cut_off_anywhere_are_broken(media, tmp_path, name: str, options: dict, share: float) -> None:
    """Also in containers that play as far as they reach."""
    data = copied(media / "clip0.mp4", tmp_path / name, **options).read_bytes()
    (tmp_path / f"cut_{name}").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadData) as caught:
        read_video(tmp_path / f"cut_{name}", UniformFps(fps=4.0))
    assert caught.value.reason in ("broken_media", "empty_video")


@pytest.mark.parametrize("seed", range(4))
def test_damaged_pictures_are_not_passed_off_as_whole(tmp_path, seed: int) -> None:
    """A decoder conceals damage by guessing; it says so, and the file is broken."""
    random = np.random.default_rng(seed)
    write_video(tmp_path / "noise.mp4", random.integers(0, 255, (16, 56, 56, 3), dtype=np.uint8), fps=4.0)
    data = bytearray((tmp_path / "noise.mp4").read_bytes())
    for place in random.integers(data.find(b"mdat") + 700, len(data) * 3 // 4, 30):
        data[place] ^= 0xFF
    (tmp_path / "noise.mp4").write_bytes(data)
    with pytest.raises(BadData) as caught:
        read_video(tmp_path / "noise.mp4", UniformFps(fps=4.0))
    assert caught.value.reason == "broken_media"


def test_impossible_names_are_missing_files(tmp_path) -> None:
    for name in ("a\0b", "a" * 5000):
        for read in (lambda path: read_video(path, UniformFps()), read_image):
            with pytest.raises(BadData) as caught:
                read(tmp_path / name)
            assert caught.value.reason == "missing_media"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_frames_are_resized_while_they_are_read(media, interpolation) -> None:
    limits = FrameLimits.of_tokens(9, 9, 10**6)
    plain = read_video(media / "clip0.mp4", UniformFps())
    expected = resize_frames(plain.pixels, 84, 84, interpolation)
    for resizing, mean in (("exact", 0.0), ("fused", 1.5)):  # fused, colours are interpolated and not repeated
        video = read_video(
            media / "clip0.mp4", UniformFps(), limits=limits, resizing=resizing, interpolation=interpolation
        )
        assert video.pixels.shape == (8, 84, 84, 3)
        assert np.abs(video.pixels.astype(int) - expected).mean() <= mean, resizing


def test_times_may_be_those_of_a_constant_rate(media, tmp_path) -> None:
    """A clip whose frames come at an uneven pace: the container knows, index over rate does not."""
    path = tmp_path / "uneven.mp4"
    with av.open(str(media / "clip0.mp4")) as read, av.open(str(path), "w") as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        for packet in read.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts * 3 // 2, packet.dts * 3 // 2, copy
                write.mux(packet)
    told = read_video(path, UniformFps(fps=30.0, min_frames=16))
    counted = read_video(path, UniformFps(fps=30.0, min_frames=16), times="index")
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)  # pyright: ignore[reportArgumentType]
    assert counted.timestamps == tuple(index / rate for index in range(16))
    np.testing.assert_array_equal(told.pixels, counted.pixels)
    assert told.timestamps[-1] == pytest.approx(15 * 1.5 / 4, abs=0.01)


def test_the_nearest_frame_is_taken_and_of_two_the_earlier() -> None:
    random = np.random.default_rng(0)
    seconds = np.cumsum(random.integers(1, 5, 60)) / 4.0
    wanted = np.concatenate([random.integers(0, 8 * int(seconds[-1]) + 9, 200) / 8.0, [0.0, 1e3]])  # eighths: many ties
    for first, last in ((0, 59), (7, 31)):
        between = seconds[first : last + 1]
        expected = [first + int(np.abs(between - second).argmin()) for second in wanted]  # argmin takes the first
        assert _nearest(seconds, wanted, first, last) == expected
    gaps = np.diff(seconds)
    assert any(second in seconds[:-1] + gaps / 2 for second in wanted)


def test_a_policy_may_look_at_frames_that_are_not_there(media, tmp_path) -> None:
    """Slow and fast frames of a file with an edit list: the first look finds fewer frames than promised."""
    path = copied(media / "clip0.mp4", tmp_path / "cut.mp4", shift=-1.0, avoid_negative_ts="disabled")
    video = read_video(path, SlowFast(fps=4.0), limits=FrameLimits.of_tokens(4, 4, 10**6))
    assert video.timestamps == tuple(n / 4 for n in range(12))
    assert len(video.fast) in (0, 12)
    assert sum(len(run) for run in video.runs) == 12


def test_a_frame_may_be_chosen_twice(media) -> None:
    class Twice(UniformFps):
        def select(self, num_frames: int, fps: float) -> list[int]:
            return [0, 3, 3]

    video = read_video(media / "clip0.mp4", Twice())
    assert video.timestamps == (0.0, 0.75, 0.75)
    np.testing.assert_array_equal(video.pixels[1], video.pixels[2])


REASONS = {"broken_media", "empty_video", "missing_media", "media_too_large", "timed_out"}


def frames_or_reason(path: Path) -> Frames | str:
    try:
        return read_video(path, UniformFps(), time_limit=20)
    except BadData as error:
        return error.reason


@pytest.mark.parametrize("kind", ["cut", "flipped", "zeroed", "shuffled", "header"])
def test_damage_of_every_kind_is_bad_data_or_harmless(media, tmp_path, kind: str) -> None:
    """Whatever happened to a file: frames or bad data with a reason come out of it, in time, and the file is closed."""
    whole = (media / "clip0.mp4").read_bytes()
    path = tmp_path / "damaged.mp4"
    for seed in range(40):
        random, data = np.random.default_rng(seed), bytearray(whole)
        start = int(random.integers(0, len(data) - 200))
        if kind == "cut":
            data = data[:start]
        elif kind == "flipped":
            for place in random.integers(0, len(data), 12):
                data[place] ^= 1 << int(random.integers(8))
        elif kind == "zeroed":
            data[start : start + 200] = bytes(200)
        elif kind == "shuffled":
            data[start : start + 200] = random.permutation(list(data[start : start + 200])).astype(np.uint8).tobytes()
        else:  # absurd numbers in the index
            place = data.find(b"stts") + int(random.integers(4, 60))
            data[place : place + 4] = b"\xff\xff\xff\xf0"
        path.write_bytes(data)
        video = frames_or_reason(path)
        if isinstance(video, Frames):
            assert video.pixels.shape[1:] == (56, 56, 3)
            assert len(video.pixels) == len(video.timestamps)
        else:
            assert video in REASONS
    assert not any(str(link.resolve()) == str(path) for link in Path("/proc/self/fd").iterdir())


def test_another_kind_of_file_behind_the_name(media, tmp_path) -> None:
    for name, content in (
        ("text.mp4", b"hello " * 400),
        ("empty.mp4", b""),
        ("image.mp4", (media / "wide.png").read_bytes()),
    ):
        (tmp_path / name).write_bytes(content)
        found = frames_or_reason(tmp_path / name)
        if name != "image.mp4":  # FFmpeg shows a picture as a video of one frame
            assert isinstance(found, str)
            assert found in REASONS
