"""Samples to look at: frames, question, expected answer and prediction."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from keyekit.batch import Batch
from keyekit.callbacks.answers import conditions_of
from keyekit.callbacks.strips import draw_strip, frames_of
from keyekit.metrics.answers import Prediction

__all__ = ["SamplePreviews"]


class SamplePreviews(lightning.Callback):
    """Draw the first samples of each task with what the model answered.

    Every preview goes to TensorBoard, as a picture and as text, and to ``<run>/previews/`` as a PNG file: those of a test as
    ``<task>-<number>.png``, those of validations in folders ``validate-<step>/``. It shows the frames as the model sees
    them, after sampling and resizing, with their seconds; a right prediction is green, a wrong one red. Only rank 0 draws.

    Args:
        per_task: Samples of each task.
        every_n_validations: Draw at every n-th validation; 0 for tests alone.
        conditions: Which conditions of a test to draw.
        frame_height: Height of a frame in pixels.
        max_frames: Frames of a sample drawn at most, spread evenly.
    """

    def __init__(
        self,
        per_task: int = 4,
        every_n_validations: int = 1,
        conditions: tuple[str, ...] = ("open",),
        frame_height: int = 112,
        max_frames: int = 16,
    ) -> None:
        if per_task < 1 or every_n_validations < 0:
            raise ValueError(
                f"per_task={per_task} must be at least 1, every_n_validations={every_n_validations} at least 0"
            )
        self.per_task = per_task
        self.every_n_validations = every_n_validations
        self.conditions = conditions
        self.frame_height = frame_height
        self.max_frames = max_frames
        self._validations = 0
        self._drawn: Counter[tuple[str, str]] = Counter()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Count validations."""
        self._drawn.clear()
        if not trainer.sanity_checking:
            self._validations += 1

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw samples of a pack of prompts."""
        due = self.every_n_validations and self._validations % self.every_n_validations == 0
        if due and not trainer.sanity_checking:
            self._draw(trainer, outputs, batch, "validate", "open")

    def on_test_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Begin with the first samples again."""
        self._drawn.clear()

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw samples of a pack of prompts."""
        condition = conditions_of(trainer)[dataloader_idx]
        if condition in self.conditions:
            self._draw(trainer, outputs, batch, "test", condition)

    def _draw(self, trainer: lightning.Trainer, outputs: Any, batch: Any, stage: str, condition: str) -> None:
        if not trainer.is_global_zero or not isinstance(outputs, dict) or not isinstance(batch, Batch):
            return
        places = {id(sample): index for index, sample in enumerate(batch.samples)}  # names may repeat in users' files
        for prediction in outputs.get("predictions", ()):
            key = (condition, prediction.info.task)
            if self._drawn[key] >= self.per_task:
                continue
            self._drawn[key] += 1
            frames = frames_of(batch, places[id(prediction.info)])
            strip = draw_strip(prediction, frames, condition, self.frame_height, self.max_frames)
            name = f"{prediction.info.task}-{self._drawn[key]}" + ("" if condition == "open" else f"-{condition}")
            folder = Path(trainer.default_root_dir) / "previews"
            folder = folder if stage == "test" else folder / f"{stage}-{trainer.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(strip).save(folder / f"{_file_name(name)}.png")
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    board, tag = logger.experiment, f"previews/{stage}/{name}"
                    board.add_image(tag, strip, trainer.global_step, dataformats="HWC")
                    board.add_text(tag, _described(prediction), trainer.global_step)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _described(prediction: Prediction) -> str:
    """Markdown for TensorBoard; texts are indented blocks, so that special tokens are not taken for HTML."""
    info = prediction.info
    seconds = ", ".join(f"{second:.1f}" for second in info.timestamps)
    parts = {"question": info.question, "expected": str(info.answer), "predicted": prediction.text}
    blocks = [
        f"**{title}**\n\n" + "\n".join(f"    {line}" for line in text.splitlines()) for title, text in parts.items()
    ]
    return "\n\n".join([*blocks, f"sample `{info.id}`" + (f", frames at {seconds} s" if seconds else "")])
