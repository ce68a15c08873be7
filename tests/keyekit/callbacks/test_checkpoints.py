"""Checkpoints of a run: when they come, which stay, and that a resumed run repeats the one that was not stopped, to the bit."""

from __future__ import annotations

import logging
import os
import random
import signal
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from keyekit.callbacks import RunCheckpoints, StopOnSignal
from keyekit.data.loader import StatefulLoader
from keyekit.distributed.checkpoint_file import WholeCheckpointIO

STEPS = 12


class Numbers(StatefulLoader):
    """Five batches an epoch, so that epochs end in the middle of things."""

    def __len__(self) -> int:
        return 5

    def batch(self, epoch: int, position: int) -> torch.Tensor:
        return torch.full((2, 3), float(10 * epoch + position + 1) / 50)


class Noisy(lightning.LightningModule):
    """Draws from every global generator in every step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.losses: list[str] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        noise = random.random() + np.random.standard_normal()  # noqa: NPY002
        loss = (self.layer(nn.functional.dropout(batch, 0.5)) - noise).square().mean()
        self.losses.append(loss.item().hex())
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 0.1)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3), "interval": "step"}]


class At(lightning.Callback):
    """Does something in the middle of a step."""

    def __init__(self, step: int, action) -> None:
        self.step = step
        self.action = action

    def on_train_batch_start(self, trainer, *arguments) -> None:
        if trainer.global_step == self.step:
            self.step = -1
            self.action()


def fit(folder: Path, *callbacks, resume: Path | None = None, accumulate: int = 1, **arguments) -> Noisy:
    lightning.seed_everything(7)
    task = Noisy()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        default_root_dir=folder,
        callbacks=[StopOnSignal(), RunCheckpoints(**{"every_n_steps": 4} | arguments), *callbacks],
        plugins=[WholeCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, Numbers(), ckpt_path=resume)
    return task


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[str]:
    return fit(tmp_path_factory.mktemp("whole")).losses


def test_the_newest_two_stay_and_last_points_to_the_newest(tmp_path) -> None:
    fit(tmp_path)
    assert names(tmp_path) == ["last.ckpt", "step=00000008.ckpt", "step=00000012.ckpt"]
    assert (tmp_path / "checkpoints/last.ckpt").resolve().name == "step=00000012.ckpt"


def test_the_end_is_saved_unless_it_is_not_wanted(tmp_path) -> None:
    fit(tmp_path / "a", every_n_steps=5, keep=9)
    assert names(tmp_path / "a") == ["last.ckpt", *(f"step={step:08}.ckpt" for step in (5, 10, 12))]
    fit(tmp_path / "b", every_n_steps=5, keep=1, at_end=False)
    assert names(tmp_path / "b") == ["last.ckpt", "step=00000010.ckpt"]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("step", [1, 4, 6])
def test_a_run_that_is_stopped_goes_on_to_the_bit(tmp_path, whole, step, accumulate) -> None:
    expected = whole if accumulate == 1 else fit(tmp_path / "whole", accumulate=accumulate).losses
    stop = At(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SIGTERMException) as caught:
        fit(tmp_path / "cut", stop, accumulate=accumulate)
    last = tmp_path / "cut/checkpoints/last.ckpt"
    assert last.resolve().name == f"step={step + 1:08}.ckpt"
    assert any(f"{last.resolve().name}; the same command" in note for note in caught.value.__notes__)
    rest = fit(tmp_path / "cut", resume=last, accumulate=accumulate).losses
    assert 0 < len(rest) < len(expected)
    assert rest == expected[-len(rest) :]


def test_an_error_saves_nothing_and_names_the_last_checkpoint(tmp_path, whole) -> None:
    def fail() -> None:
        raise ZeroDivisionError("broken")

    with pytest.raises(ZeroDivisionError) as caught:
        fit(tmp_path, At(6, fail))
    assert names(tmp_path) == ["last.ckpt", "step=00000004.ckpt"]
    assert "step=00000004.ckpt" in caught.value.__notes__[0]
    rest = fit(tmp_path, resume=tmp_path / "checkpoints/last.ckpt").losses
    assert rest == whole[4:]


def test_what_a_killed_process_left_is_removed(tmp_path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/step=00000099.ckpt.partial").write_bytes(b"half")
    fit(tmp_path)
    assert names(tmp_path) == ["last.ckpt", "step=00000008.ckpt", "step=00000012.ckpt"]


def test_a_broken_checkpoint_is_never_counted_among_those_that_are_kept(tmp_path, caplog) -> None:
    fit(tmp_path, keep=1)
    newest = tmp_path / "checkpoints/step=00000012.ckpt"
    (tmp_path / "checkpoints/step=00000099.ckpt").write_bytes(b"not whole")
    with caplog.at_level(logging.WARNING):
        fit(tmp_path, keep=1, resume=newest)
    assert newest.exists()


@pytest.mark.parametrize("arguments", [{"keep": 0}, {"every_n_steps": 0}])
def test_at_least_one(arguments) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        RunCheckpoints(**arguments)
