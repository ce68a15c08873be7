"""Reading real files, whole and broken."""

import struct
import zlib

import av
import numpy as np
import pytest

from keyekit.data.errors import BadData
from keyekit.data.media import read_image, read_video
from keyekit.data.sampling import UniformFps


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


def test_a_clip_without_frames_is_empty(tmp_path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(BadData, match="no video stream") as caught:
        read_video(path, UniformFps())
    assert caught.value.reason == "empty_video"


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
