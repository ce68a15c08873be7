"""The image tool of thinking with images: crop, rotate, contrast or code on copies of pictures, all within the sandbox."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

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
    What an operation showed is remembered, since the responses to a prompt often ask for the same; code is run every time.

    Args:
        limits: Of one call. Thyme allows 10 seconds (8B sheet 5.6).
        most_pixels: Larger results are refused.
        remembered: Operations whose results are kept, those that were asked for last.
    """

    def __init__(self, limits: Limits | None = None, most_pixels: int = 2**24, remembered: int = 256) -> None:
        if most_pixels < 1 or remembered < 0:
            raise ValueError(f"need most_pixels >= 1 and remembered >= 0, got {most_pixels} and {remembered}")
        self.remembered = remembered
        self._results: OrderedDict[bytes, Observation] = OrderedDict()
        self._lock = Lock()
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

    def __getstate__(self) -> dict[str, Any]:
        return {"limits": self.limits, "most_pixels": self.most_pixels, "remembered": self.remembered}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # another process remembers for itself

    def _serve(self, call: ImageCall, images: Sequence[bytes]) -> Observation:
        if call.operation == "code":
            files = {f"image_{number}.png": content for number, content in enumerate(images)}
            return self._run(_EXECUTE, {**files, "code.py": call.code.encode(errors="replace")})
        if call.image >= len(images):
            raise BadCall(f"there is no image {call.image}: there are {len(images)}, numbered from 0")
        image, path = images[call.image], f"image_{call.image}.png"
        order = json.dumps({"operation": call.operation, "path": path, **call.arguments}).encode()
        key = hashlib.blake2b(order + image, digest_size=16).digest()
        found = self._recalled(key)
        if found is None:
            found = self._run(_OPERATE, {path: image, "call.json": order})
            self._remember(key, found)
        return found

    def _run(self, program: str, files: Mapping[str, bytes]) -> Observation:
        names = [f"result_{number}.png" for number in range(_MOST_RESULTS)]
        return self._observation(run(program, files, self.limits, packages=_PACKAGES, collect=names), names)

    def _recalled(self, key: bytes) -> Observation | None:
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
            return self._results.get(key)

    def _remember(self, key: bytes, found: Observation) -> None:
        if found.failed:  # such as for want of time, which another try may have
            return
        with self._lock:
            self._results[key] = found
            while len(self._results) > self.remembered:
                self._results.popitem(last=False)

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
