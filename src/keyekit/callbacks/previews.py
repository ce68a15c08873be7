"""Pictures of what the model saw and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from keyekit.batch import Batch
from keyekit.data.processing.patchify import unpatchify
from keyekit.metrics.answers import Prediction, score

__all__ = ["SamplePreviews", "draw_preview", "pictures_of"]

_MERGED = 4  # patches per decoder token (Keye-VL 8B sheet 1.4)


class SamplePreviews(lightning.Callback):
    """Show some test samples of each task: frames with their seconds, question, expected answer and prediction.

    They go to TensorBoard as images and text, and as PNG files to ``<run>/previews/``.

    Args:
        per_task: Samples per task.
        height: Height of a frame in the picture, in pixels.
    """

    def __init__(self, per_task: int = 4, height: int = 112) -> None:
        self.per_task = per_task
        self.height = height
        self._shown: dict[str, int] = {}

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Start counting anew."""
        self._shown = {}

    @rank_zero_only
    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first samples of each task, seen with open eyes."""
        if dataloader_idx or not isinstance(outputs, dict):
            return
        for index, prediction in enumerate(outputs.get("predictions", [])):
            task = prediction.info.task
            number = self._shown.get(task, 0)
            if number >= self.per_task:
                continue
            self._shown[task] = number + 1
            picture = draw_preview(prediction, pictures_of(batch, index), self.height)
            self._keep(trainer, f"{task}-{number}", picture, prediction)

    def _keep(self, trainer: lightning.Trainer, name: str, picture: Image.Image, prediction: Prediction) -> None:
        folder = Path(trainer.default_root_dir) / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{name}.png")
        info = prediction.info
        text = f"{info.question}\n\nexpected: {info.answer}\n\npredicted: {prediction.text}"
        for logger in trainer.loggers:
            writer = logger.experiment
            if hasattr(writer, "add_image"):
                writer.add_image(f"previews/{name}", np.asarray(picture), trainer.global_step, dataformats="HWC")
                writer.add_text(f"previews/{name}", text, trainer.global_step)


def pictures_of(batch: Batch, index: int) -> list[np.ndarray]:
    """The pictures that one sample of a batch shows, as ``[height, width, 3]`` uint8 each."""
    if batch.vision is None:
        return []
    sample = batch.samples[index]
    places = batch.vision_index.cpu()
    first = int((places < sample.start).sum())
    stop = int((places < sample.stop).sum())
    pictures, token, patch = [], 0, 0
    for rows, columns in batch.vision.grids:
        if first <= token < stop:
            pictures.append(_picture(batch.vision.patches, patch, rows, columns))
        token += rows * columns // _MERGED
        patch += rows * columns
    return pictures


def _picture(patches: Tensor, start: int, rows: int, columns: int) -> np.ndarray:
    return unpatchify(patches[start : start + rows * columns].to("cpu", torch.float32), rows, columns)


def draw_preview(prediction: Prediction, pictures: list[np.ndarray], height: int = 112) -> Image.Image:
    """One picture: frames side by side with their seconds, and below them question, expectation and prediction."""
    font = ImageFont.load_default(size=13)
    frames = []
    for picture in pictures:
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        frames.append(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST))
    info = prediction.info
    lines = [*info.question.splitlines(), f"expected:  {info.answer}", f"predicted: {prediction.text}"]
    strip = sum(frame.width + 4 for frame in frames)
    canvas = Image.new("RGB", (max(strip, 480) + 12, height + 30 + 18 * len(lines)), "white")
    draw = ImageDraw.Draw(canvas)
    left = 8
    for number, frame in enumerate(frames):
        canvas.paste(frame, (left, 20))
        if number < len(info.timestamps):
            draw.text((left, 3), f"{info.timestamps[number]:.1f} s", fill="black", font=font)
        left += frame.width + 4
    right = info.answer is not None and score(prediction) > 0.5
    for number, line in enumerate(lines):
        last = number == len(lines) - 1
        color = "black" if not last else ((0, 120, 0) if right else (190, 0, 0))
        draw.text((8, height + 26 + 18 * number), line, fill=color, font=font)
    return canvas
