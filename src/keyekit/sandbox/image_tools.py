"""The image tool of thinking with images: crop, rotate, contrast or code on copies of pictures, all within the sandbox."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from keyekit.sandbox.execution import run
from keyekit.sandbox.image_calls import BadCall, ImageCall, find_call
from keyekit.sandbox.limits import Limits
from keyekit.sandbox.outcome import Outcome

__all__ = ["ImageTool", "Observation"]

_PACKAGES = ("PIL", "numpy")
_MOST_RESULTS = 4
_LONGEST_TEXT = 2000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_OPERATE = """
import json
from PIL import Image, ImageEnhance

Image.MAX_IMAGE_PIXELS = None
call = json.load(open("call.json"))
image = Image.open(call["path"]).convert("RGB")
if call["operation"] == "crop":
    width, height = image.size
    left, top, right, bottom = call["box"]
    left, top = min(int(left * width), width - 1), min(int(top * height), height - 1)
    image = image.crop((left, top, max(round(right * width), left + 1), max(round(bottom * height), top + 1)))
elif call["operation"] == "rotate":
    image = image.rotate(call["degrees"], resample=Image.Resampling.BICUBIC, expand=True)
else:
    image = ImageEnhance.Contrast(image).enhance(call["factor"])
image.save("result_0.png")
"""
"""The three operations. Rotations enlarge the picture so that nothing is cut off."""

_EXECUTE = """
import contextlib, io, os, sys

said = io.StringIO()
try:
    with contextlib.redirect_stdout(said):
        exec(compile(open("code.py").read(), "code.py", "exec"), {"__name__": "__main__"})
finally:
    sys.stdout.write(said.getvalue())
from PIL import Image

number = 0
for line in said.getvalue().splitlines():
    if os.path.isfile(line.strip()):
        Image.open(line.strip()).convert("RGB").save(f"result_{number}.png")
        number += 1
"""
"""Code of the model: a picture whose path it prints alone on a line is a result (8B sheet 2.5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What goes back to the model.

    Args:
        text: What the code printed, or what went wrong.
        images: Pictures as PNG files.
        reason: ``shown`` if there are pictures, ``said`` if there is text alone, ``bad_call`` if the call could not be
            understood, otherwise the reason of :class:`~keyekit.sandbox.outcome.Reason`; for counters.
    """

    text: str = ""
    images: tuple[bytes, ...] = ()
    reason: str

    @property
    def failed(self) -> bool:
        """Whether the model may correct itself."""
        return self.reason not in ("shown", "said")


class ImageTool:
    """Serves the calls of :func:`~keyekit.sandbox.image_calls.find_call`.

    Code finds the pictures as ``image_0.png``, ``image_1.png`` and so on in its folder, whatever their format, and may use
    Pillow and numpy. Nothing that comes back is decoded here: pictures are checked for being PNG files of a bearable size.

    Args:
        limits: Of one call. Thyme allows 10 seconds (8B sheet 5.6).
        most_pixels: Larger results are refused.
    """

    def __init__(self, limits: Limits | None = None, most_pixels: int = 2**24) -> None:
        if most_pixels < 1:
            raise ValueError(f"most_pixels={most_pixels}: a picture has at least one")
        self.limits = limits or Limits()
        self.most_pixels = most_pixels

    def use(self, text: str, images: Sequence[bytes]) -> Observation | None:
        """Serve the last call of a text.

        Args:
            text: What the model said.
            images: Files of the pictures of the conversation so far, in order.

        Returns:
            What the model gets to see; ``None`` if it called nothing.

        Raises:
            SandboxUnavailable: If this machine cannot confine programs.
        """
        try:
            call = find_call(text)
            return None if call is None else self._serve(call, images)
        except BadCall as error:
            return Observation(text=f"Error: {error}", reason="bad_call")

    def _serve(self, call: ImageCall, images: Sequence[bytes]) -> Observation:
        files = {f"image_{number}.png": content for number, content in enumerate(images)}
        if call.operation == "code":
            program, files["code.py"] = _EXECUTE, call.code.encode(errors="replace")
        else:
            if call.image >= len(images):
                raise BadCall(f"there is no image {call.image}: there are {len(images)}, numbered from 0")
            order = {"operation": call.operation, "path": f"image_{call.image}.png", **call.arguments}
            program, files["call.json"] = _OPERATE, json.dumps(order).encode()
        names = [f"result_{number}.png" for number in range(_MOST_RESULTS)]
        outcome = run(program, files, self.limits, packages=_PACKAGES, collect=names)
        return self._observation(outcome, names)

    def _observation(self, outcome: Outcome, names: Sequence[str]) -> Observation:
        said = outcome.stdout.decode(errors="replace")[:_LONGEST_TEXT]
        if not outcome.finished:
            return Observation(text=f"Error: {outcome.complaint[:_LONGEST_TEXT]}", reason=outcome.reason.value)
        images = tuple(outcome.files[name] for name in names if name in outcome.files)
        for image in images:
            problem = self._problem(image)
            if problem:
                return Observation(text=f"Error: {problem}", reason="bad_image")
        return Observation(text=said, images=images, reason="shown" if images else "said")

    def _problem(self, image: bytes) -> str:
        """What speaks against showing a file to the model; empty if nothing does."""
        if len(image) < 24 or not image.startswith(_SIGNATURE) or image[12:16] != b"IHDR":
            return "a result is no PNG file"
        width, height = struct.unpack(">II", image[16:24])
        if not 0 < width * height <= self.most_pixels:
            return f"a result of {width} x {height} pixels is too large: at most {self.most_pixels} pixels"
        return ""
