"""Pictures of samples: frames side by side with the question, the expected answer and the model's."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from keyekit.batch import Batch
from keyekit.data.processing.patchify import unpatchify
from keyekit.metrics.answers import Prediction, score

__all__ = ["draw_strip", "frames_of"]

_MARGIN = 6
_LINE = 16
_FONT_SIZE = 12
_MINIMUM_WIDTH = 480
_BACKGROUND, _TEXT, _RIGHT, _WRONG, _UNKNOWN = (250,) * 3, (30,) * 3, (0, 140, 60), (200, 30, 40), (120,) * 3


def frames_of(batch: Batch, index: int) -> list[np.ndarray]:
    """The images and frames that one sample of a pack sees.

    Which grids belong to a sample follows from where their merged features go: a grid of ``rows * columns`` patches fills
    ``rows * columns / merge`` placeholders, in the order of ``vision_index``.

    Args:
        batch: The pack, on any device.
        index: Number of the sample.

    Returns:
        Pictures ``[height, width, 3]`` uint8 in the order in which the model sees them; empty for text alone.

    Raises:
        ValueError: If patches and placeholders do not fit each other.
    """
    if batch.vision is None:
        return []
    places = batch.vision_index.tolist()
    patches = sum(rows * columns for rows, columns in batch.vision.grids)
    if not places or patches % len(places):
        raise ValueError(f"{patches} patches cannot be merged into {len(places)} placeholders")
    merge = patches // len(places)
    sample, frames, first = batch.samples[index], [], 0
    for rows, columns in batch.vision.grids:
        count = rows * columns
        if sample.start <= places[first // merge] < sample.stop:
            frames.append(unpatchify(batch.vision.patches[first : first + count], rows, columns))
        first += count
    return frames


def draw_strip(
    prediction: Prediction,
    frames: Sequence[np.ndarray],
    condition: str = "open",
    frame_height: int = 112,
    max_frames: int = 16,
    frames_per_row: int = 8,
) -> np.ndarray:
    """Draw a sample: frames with their seconds, question, expected answer, and the prediction in green or red.

    A prediction is green when its score is at least a half, red below, grey when the answer is not known.

    Args:
        prediction: The sample and what the model said.
        frames: Pictures ``[height, width, 3]`` uint8.
        condition: What the frames are, for the caption, if it is not the sample's own pictures (``open``).
        frame_height: Height of a frame in pixels.
        max_frames: Frames drawn at most, spread evenly.
        frames_per_row: Frames side by side.

    Returns:
        ``[height, width, 3]`` uint8.
    """
    cells = _cells(frames, prediction.info.timestamps, frame_height, max_frames)
    rows = [cells[start : start + frames_per_row] for start in range(0, len(cells), frames_per_row)]
    widths = [sum(cell.width + _MARGIN for cell, _ in row) + _MARGIN for row in rows]
    width = max([_MINIMUM_WIDTH, *widths])
    lines = _lines(prediction, condition, characters=(width - 2 * _MARGIN) // 7)
    height = _MARGIN + len(rows) * (frame_height + _LINE + _MARGIN) + len(lines) * _LINE + _MARGIN
    canvas = Image.new("RGB", (width, height), _BACKGROUND)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT_SIZE)
    top = _MARGIN
    for row in rows:
        left = _MARGIN
        for cell, label in row:
            canvas.paste(cell, (left, top))
            pen.text((left, top + frame_height + 1), label, fill=_UNKNOWN, font=font)
            left += cell.width + _MARGIN
        top += frame_height + _LINE + _MARGIN
    for text, color in lines:
        pen.text((_MARGIN, top), text, fill=color, font=font)
        top += _LINE
    pen.rectangle((0, 0, width - 1, height - 1), outline=_mark(prediction), width=2)
    return np.asarray(canvas)


def _cells(
    frames: Sequence[np.ndarray], timestamps: Sequence[float], frame_height: int, max_frames: int
) -> list[tuple[Image.Image, str]]:
    """Frames at their drawn size with their labels."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), max_frames)).round().astype(int)).tolist()
    cells = []
    for index in chosen if frames else ():
        picture = Image.fromarray(frames[index])
        width = max(round(picture.width * frame_height / picture.height), 1)
        smooth = Image.Resampling.BILINEAR if picture.height > frame_height else Image.Resampling.NEAREST
        timed = len(timestamps) == len(frames)
        cells.append((picture.resize((width, frame_height), smooth), f"{timestamps[index]:.1f} s" if timed else ""))
    return cells


def _lines(prediction: Prediction, condition: str, characters: int) -> list[tuple[str, tuple[int, ...]]]:
    """Wrapped text with its colour."""
    info = prediction.info
    eyes = "" if condition == "open" else f", {condition} pictures"
    paragraphs = [
        (f"[{info.task}{eyes}]  {info.question}", _TEXT),
        (f"expected:  {'unknown' if info.answer is None else info.answer}", _TEXT),
        (f"predicted: {prediction.text}", _mark(prediction)),
    ]
    return [(line, color) for text, color in paragraphs for line in textwrap.wrap(text, characters) or [""]]


def _mark(prediction: Prediction) -> tuple[int, ...]:
    if prediction.info.answer is None:
        return _UNKNOWN
    return _RIGHT if score(prediction) >= 0.5 else _WRONG
