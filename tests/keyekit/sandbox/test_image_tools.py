from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from keyekit.sandbox.execution import available, run
from keyekit.sandbox.image_tools import ImageTool
from keyekit.sandbox.limits import Limits

pytestmark = pytest.mark.skipif(not available(), reason=f"no sandbox here: {available().why_not}")


@pytest.fixture
def picture() -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (20, 40, 3), dtype=np.uint8))


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def call(name: str, arguments: str) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {{{arguments}}}}}</tool_call>'


def test_no_call_no_observation(picture):
    assert ImageTool().use("just text", [encoded(picture)]) is None


def test_crop_takes_the_box_of_the_right_picture(picture):
    images = [encoded(Image.new("RGB", (3, 3))), encoded(picture)]
    seen = ImageTool().use(call("crop", '"image": 1, "box": [250, 500, 750, 1000]'), images)
    assert seen is not None
    assert seen.reason == "shown"
    assert np.array_equal(decoded(seen.images[0]), np.asarray(picture)[10:20, 10:30])


def test_a_thin_crop_is_a_pixel_wide(picture):
    seen = ImageTool().use(call("crop", '"box": [999.9, 0, 1000, 1000]'), [encoded(picture)])
    assert seen is not None
    assert decoded(seen.images[0]).shape == (20, 1, 3)


def test_rotation_and_contrast(picture):
    turned = ImageTool().use(call("rotate", '"degrees": 90'), [encoded(picture)])
    assert turned is not None
    assert np.array_equal(decoded(turned.images[0]), np.rot90(np.asarray(picture)))
    strong = ImageTool().use(call("contrast", '"factor": 2.5'), [encoded(picture)])
    assert strong is not None
    assert np.array_equal(decoded(strong.images[0]), np.asarray(ImageEnhance.Contrast(picture).enhance(2.5)))


def test_code_shows_the_picture_whose_path_it_prints(picture):
    cut = "Image.open('image_0.png').crop((0, 0, 5, 7)).save('/tmp/cut_1234.jpg')"
    code = f"from PIL import Image\n{cut}\nprint('/tmp/cut_1234.jpg')"
    seen = ImageTool().use(f"<code>```python\n{code}\n```</code>", [encoded(picture, "JPEG")])
    assert seen is not None
    assert seen.reason == "shown"
    assert decoded(seen.images[0]).shape == (7, 5, 3)
    assert seen.text == "/tmp/cut_1234.jpg\n"


@pytest.mark.parametrize(
    ("code", "reason", "text"),
    [
        ("print(6 * 7)", "said", "42"),
        ("print('before')\nundefined", "failed", "NameError: name 'undefined' is not defined"),
        ("open('/etc/passwd')", "failed", "FileNotFoundError"),
        ("while True: pass", "cpu", "ended by the sandbox: cpu"),
        ("print('/etc/ld.so.cache')", "failed", "UnidentifiedImageError"),
        (
            "import atexit\natexit.register(lambda: open('result_0.png', 'wb').write(b'GIF89a' * 9))",
            "bad_image",
            "no PNG",
        ),
    ],
)
def test_what_code_says_or_does_wrong_goes_back(picture, code, reason, text):
    tool = ImageTool(Limits(cpu_seconds=0.7))
    seen = tool.use(f"<code>{code}</code>", [encoded(picture)])
    assert seen is not None
    assert (seen.reason, seen.images) == (reason, ())
    assert text in seen.text
    assert seen.failed == (reason != "said")


def test_bad_calls_go_back_without_a_run(picture):
    for text in (call("crop", '"image": 7, "box": [0, 0, 9, 9]'), call("smudge", "")):
        seen = ImageTool().use(text, [encoded(picture)])
        assert seen is not None
        assert seen.reason == "bad_call"
        assert seen.failed


def test_a_picture_that_is_too_large_is_not_shown(picture):
    seen = ImageTool(most_pixels=100).use(call("rotate", '"degrees": 0'), [encoded(picture)])
    assert seen is not None
    assert seen.reason == "bad_image"
    assert "40 x 20" in seen.text
    with pytest.raises(ValueError, match="most_pixels >= 1 and remembered >= 0, got 0"):
        ImageTool(most_pixels=0)


def test_an_operation_is_remembered_and_code_is_run_every_time(picture, monkeypatch):
    runs = []

    def counted(program, *arguments, **settings):
        runs.append(program)
        return run(program, *arguments, **settings)

    monkeypatch.setattr("keyekit.sandbox.image_tools.run", counted)
    tool, image, other = ImageTool(remembered=2), encoded(picture), encoded(picture.rotate(90))
    first = tool.use(call("rotate", '"degrees": 90'), [image])
    assert tool.use(call("rotate", '"degrees": 90'), [image]) == first
    assert len(runs) == 1
    assert tool.use(call("rotate", '"degrees": 90'), [other]) != first  # another picture
    assert tool.use(call("rotate", '"degrees": 180'), [image]) != first
    assert len(runs) == 3
    tool.use(call("rotate", '"degrees": 90'), [image])  # forgotten by now
    assert len(runs) == 4
    for _ in range(2):
        tool.use("<code>print(1)</code>", [image])
    assert len(runs) == 6
    assert pickle.loads(pickle.dumps(tool)).remembered == 2
