"""Draw scenes as pixels: one cached, smooth-edged stamp per shape and size, put at whole pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keyekit.data.world.scene import COLORS, SHAPES, Label, Scene

__all__ = ["render", "stamp"]

_OVERSAMPLING = 4
"""Points per pixel and axis that decide how much of an edge pixel a shape covers."""


@lru_cache(maxsize=1024)
def stamp(shape: str, diameter: int) -> np.ndarray:
    """Coverage of each pixel by a shape that fills its bounding square.

    Args:
        shape: A name of :data:`~keyekit.data.world.scene.SHAPES`.
        diameter: Side of the bounding square in pixels.

    Returns:
        ``[diameter, diameter, 1]`` float32 between 0 and 1.

    Raises:
        ValueError: If the shape is unknown.
    """
    count = diameter * _OVERSAMPLING
    axis = (np.arange(count, dtype=np.float32) + 0.5) / count * 2 - 1
    x, y = axis[None, :], axis[:, None]
    radius = np.sqrt(x * x + y * y)
    if shape == "circle":
        inside = radius <= 1
    elif shape == "square":
        inside = np.ones((count, count), dtype=bool)
    elif shape == "triangle":
        inside = np.abs(x) <= (y + 1) / 2
    elif shape == "cross":
        inside = (np.abs(x) <= 0.34) | (np.abs(y) <= 0.34)
    elif shape == "ring":
        inside = (radius <= 1) & (radius >= 0.55)
    elif shape == "diamond":
        inside = np.abs(x) + np.abs(y) <= 1
    else:
        raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")
    blocks = inside.reshape(diameter, _OVERSAMPLING, diameter, _OVERSAMPLING)
    return blocks.mean(axis=(1, 3), dtype=np.float32)[..., None]


def _background(scene: Scene) -> np.ndarray:
    ramp = np.linspace(-0.5, 0.5, scene.size, dtype=np.float32)
    light = ramp[None, :] * scene.slope[0] + ramp[:, None] * scene.slope[1]
    return np.clip(np.asarray(scene.background, np.float32) + light[..., None], 0, 255)


@lru_cache(maxsize=64)
def _font(height: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=height)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError(
            "Pillow was built without FreeType, so no text can be drawn; install the standard Pillow wheel"
        )
    return font


def _write(frame: np.ndarray, label: Label) -> np.ndarray:
    image = Image.fromarray(frame)
    ImageDraw.Draw(image).text(
        label.center, label.text, fill=COLORS[label.color], font=_font(label.height), anchor="mm"
    )
    return np.asarray(image)


def render(scene: Scene) -> np.ndarray:
    """Draw every frame of a scene.

    Args:
        scene: What to draw; objects must lie inside the picture.

    Returns:
        ``[F, size, size, 3]`` uint8 RGB frames; an image has one.

    Example:
        >>> render(Scene(size=56, background=(30, 30, 30))).shape
        (1, 56, 56, 3)
    """
    background = _background(scene)
    frames = np.repeat(np.round(background).astype(np.uint8)[None], scene.num_frames, axis=0)
    for thing in scene.objects:
        coverage = stamp(thing.shape, thing.diameter)
        paint = coverage * np.asarray(COLORS[thing.color], np.float32)
        for frame, second in zip(frames, scene.seconds(), strict=True):
            if thing.is_visible(second):
                left, top, right, bottom = thing.box(second, scene.size)
                patch = frame[top:bottom, left:right]
                patch[...] = np.round(paint + (1 - coverage) * patch)
    if scene.label is not None:
        frames = np.stack([_write(frame, scene.label) for frame in frames])
    return frames
