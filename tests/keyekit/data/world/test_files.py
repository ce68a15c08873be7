import json
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from keyekit.data.world.files import write_image, write_json, write_lines, write_video


def test_a_clip_has_the_frames_times_and_codec_asked_for(tmp_path):
    frames = np.full((12, 56, 84, 3), 40, np.uint8)
    frames[6:, 10:40, 10:40] = (225, 25, 30)
    write_video(tmp_path / "clip.mp4", frames, fps=4.0)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert stream.average_rate == Fraction(4)
        decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    assert [time for time, _ in decoded] == [index / 4 for index in range(12)]
    error = np.abs(np.stack([pixels for _, pixels in decoded]).astype(int) - frames)
    assert error.mean() < 2
    assert np.abs(decoded[6][1][25, 25].astype(int) - (225, 25, 30)).max() < 12


def test_the_same_frames_give_the_same_bytes(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (8, 56, 56, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames, fps=4.0)
    write_video(tmp_path / "b.mp4", frames, fps=4.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("shape", [(0, 56, 56, 3), (4, 55, 56, 3)])
def test_what_cannot_be_encoded_is_refused(tmp_path, shape):
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "clip.mp4", np.zeros(shape, np.uint8), fps=4.0)


def test_images_keep_their_pixels(tmp_path):
    pixels = np.zeros((56, 56, 3), np.uint8)
    pixels[10:30, 10:30] = (30, 215, 225)
    write_image(tmp_path / "a.png", pixels)
    write_image(tmp_path / "a.jpg", pixels)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), pixels)
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"
    assert np.abs(np.asarray(Image.open(tmp_path / "a.jpg"))[20, 20].astype(int) - (30, 215, 225)).max() < 8


def test_json_files(tmp_path):
    write_json(tmp_path / "m.json", {"b": 1})
    assert json.loads((tmp_path / "m.json").read_text()) == {"b": 1}
    assert write_lines(tmp_path / "l.jsonl", [{"text": "é"}, {}]) == 2
    assert (tmp_path / "l.jsonl").read_bytes() == '{"text": "é"}\n{}\n'.encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.jsonl", "m.json"]
