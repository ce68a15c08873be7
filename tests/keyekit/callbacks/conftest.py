"""A model, data and a trainer that need no files, for the tests of callbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import lightning
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from keyekit.batch import Batch, ContrastiveBatch, SampleInfo, Segments, VisionBatch
from keyekit.metrics.answers import Prediction

PATCH = 4
TASKS = ("count", "box")
ANSWERS = {"count": "2", "box": "<|box_start|>[[0, 0, 10, 10]]<|box_end|>"}


def make_batch(number: int = 0, eyes: str = "open") -> Batch:
    """Three samples of 12, 8 and 6 tokens and 6 of padding: two frames, one image (the third is text); 4 patches a token."""
    grids = ((2, 4), (2, 4), (4, 2))
    levels = torch.repeat_interleave(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([8, 8, 8]))
    names = ("count", "box", "count")
    bounds = ((0, 12), (12, 20), (20, 26))
    samples = tuple(
        SampleInfo(
            id=f"{eyes}-{number}-{index}",
            task=task,
            start=start,
            stop=stop,
            question=f"question {index}?",
            answer=ANSWERS[task],
            meta={"chance": 0.25} if task == "count" else {},
            timestamps=(0.0, 0.5) if index == 0 else (),
        )
        for index, (task, (start, stop)) in enumerate(zip(names, bounds, strict=True))
    )
    labels = torch.full((32,), -100)
    labels[[10, 11, 19, 25]] = 1
    return Batch(
        tokens=torch.zeros(32, dtype=torch.int64),
        labels=labels,
        positions=torch.zeros(3, 32, dtype=torch.int64),
        segments=Segments.of([12, 8, 6, 6]),
        vision=VisionBatch(patches=levels[:, None, None, None].expand(-1, 3, PATCH, PATCH).clone(), grids=grids),
        vision_index=torch.tensor([2, 3, 5, 6, 14, 15]),
        samples=samples,
        num_targets=4,
    )


def make_pairs() -> ContrastiveBatch:
    """Two images with captions of 3 and 2 tokens."""
    return ContrastiveBatch(
        vision=VisionBatch(patches=torch.zeros(8, 3, PATCH, PATCH), grids=((2, 2), (2, 2))),
        tokens=torch.zeros(5, dtype=torch.int64),
        segments=Segments.of([3, 2]),
        identities=torch.arange(2),
    )


class Batches:
    """A sized loader."""

    def __init__(self, batches: list) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Data(lightning.LightningDataModule):
    """Two batches per stage; in the test one loader per condition."""

    test_conditions = ("open", "blank", "swapped")
    skipped_counts = {"missing_media": 3}  # noqa: RUF012

    def train_dataloader(self):
        return Batches([make_batch(0), make_batch(1)])

    def val_dataloader(self):
        return Batches([make_batch(0)])

    def test_dataloader(self):
        return [Batches([make_batch(0, eyes), make_batch(1, eyes)]) for eyes in self.test_conditions]


class Model(lightning.LightningModule):
    """Learns one number, and answers everything right with open eyes."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1 / 3))
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.fails_at = fails_at

    def training_step(self, batch, batch_idx):
        if self.fails_at is not None and self.global_step == self.fails_at:
            raise RuntimeError("the model broke")
        loss = (self.weight - 2.0) ** 2
        self.log("train/loss", loss, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, batch, batch_idx):
        return self.answers(batch)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return self.answers(batch)

    def answers(self, batch):
        right = all(sample.id.startswith("open") for sample in batch.samples)
        return {"predictions": [Prediction(s, str(s.answer) if right else "4") for s in batch.samples]}

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


@pytest.fixture
def batch() -> Batch:
    return make_batch()


@pytest.fixture
def pairs() -> ContrastiveBatch:
    return make_pairs()


@pytest.fixture
def loader() -> type[Batches]:
    return Batches


@pytest.fixture
def data() -> Data:
    return Data()


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def failing_model() -> Model:
    return Model(fails_at=1)


@pytest.fixture
def unknown_answers(batch) -> Batch:
    first, *rest = batch.samples
    return replace(batch, samples=(replace(first, answer=None), *rest))


@pytest.fixture
def make_trainer(tmp_path) -> Callable[..., lightning.Trainer]:
    """A trainer of four steps with TensorBoard in ``runs/toy/1`` of the temporary folder."""

    def make(*callbacks: lightning.Callback, max_steps: int = 4) -> lightning.Trainer:
        folder = tmp_path / "runs/toy/1"
        return lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=max_steps,
            logger=TensorBoardLogger(folder, name="", version=""),
            default_root_dir=folder,
            callbacks=list(callbacks),
            log_every_n_steps=2,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=1,
        )

    return make


@pytest.fixture
def scalars(tmp_path) -> Callable[[], dict[str, list[float]]]:
    """Reads what TensorBoard got."""

    def read() -> dict[str, list[float]]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "runs/toy/1"))
        events.Reload()
        return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read
