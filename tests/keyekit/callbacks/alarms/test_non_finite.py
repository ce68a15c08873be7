from __future__ import annotations

from dataclasses import replace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from keyekit.callbacks.alarms import NonFiniteLoss, TrainingFault
from keyekit.callbacks.alarms import non_finite as module
from keyekit.callbacks.checkpoints import RunCheckpoints
from keyekit.tasks.language_modeling import LanguageModeling


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def broken(pack):
    """The picture of the first sample is not a number at one place."""
    patches = pack.vision.patches.clone()
    patches[3, 1, 5, 5] = float("nan")
    return replace(pack, vision=replace(pack.vision, patches=patches))


class Last(lightning.Callback):
    """Notes the weights before each step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.weights = weights(pl_module)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["ours", "lightning's"])
def test_the_sample_and_the_last_good_checkpoint_are_named_and_the_weights_are_good(
    task, packs, loader, tmp_path, kind
) -> None:
    folder = tmp_path / "checkpoints"
    theirs = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    saving = RunCheckpoints(every_n_steps=2) if kind == "ours" else theirs
    model, last = task(), Last()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=6,
        logger=False,
        callbacks=[NonFiniteLoss(), last, saving],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(TrainingFault) as caught:
        trainer.fit(model, loader([*(packs(seed) for seed in range(4)), broken(packs(4)), packs(5)]))
    message = str(caught.value)
    assert "NonFiniteLoss at step 5: the loss of step 5 is nan" in message
    assert "of the 2 samples of the pack these make it: 4-0 (4.png);" in message
    name = "step=00000004.ckpt" if kind == "ours" else "step=4.ckpt"
    assert f"the last good checkpoint is {folder / name}" in message
    assert torch.equal(weights(model), last.weights)
    assert torch.isfinite(last.weights).all()


class OtherTerm(LanguageModeling):
    """A loss with a second term that overflows."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + torch.tensor(float("inf"))


class Foreign(LanguageModeling):
    """A loss without an objective of ours."""

    def training_step(self, batch, batch_idx):
        return self.network(batch).hidden.sum() * float("nan")


def test_losses_that_no_sample_makes_are_told_apart(watched, task) -> None:
    with pytest.raises(
        TrainingFault, match=r"step 1 is inf; no sample's own prediction is at fault, .*0-0 \(0.png\), 0-1"
    ):
        watched(NonFiniteLoss(), task(OtherTerm))
    with pytest.raises(TrainingFault, match=r"step 1 is nan; the pack held 0-0 .*there is no checkpoint yet"):
        watched(NonFiniteLoss(), task(Foreign))


def test_spoilt_weights_are_told_apart(watched, task) -> None:
    model = task()
    with torch.no_grad():
        model.network.decoder.norm.weight[3] = float("nan")
    with pytest.raises(TrainingFault, match=r"1 weights are no numbers already \(first network.decoder.norm.weight\)"):
        watched(NonFiniteLoss(), model)


def test_a_sound_run_is_left_alone(watched, task, packs) -> None:
    text = [packs(seed, grids=(None, None)) for seed in range(3)]
    assert watched(NonFiniteLoss(), task(), [*text, *(packs(seed) for seed in range(3))]).global_step == 6


class Arriving:
    """A loss on its way, which arrives when it is told to."""

    def __init__(self, value: float, there: bool) -> None:
        self.number, self.there, self.step, self.samples = value, there, 7, ()

    def is_there(self) -> bool:
        return self.there

    def value(self) -> float:
        return self.number


def test_losses_of_a_gpu_are_looked_at_when_they_arrive_and_before_a_checkpoint(make_trainer, task) -> None:
    trainer, model, alarm = make_trainer(), task(), NonFiniteLoss()
    alarm._pending.extend([Arriving(1.0, True), Arriving(float("nan"), False), Arriving(2.0, False)])
    alarm.on_train_batch_start(trainer, model, None, 0)
    assert len(alarm._pending) == 2  # the second is not there yet, and nothing waits for it
    with pytest.raises(TrainingFault, match="the loss of step 7 is nan"):
        alarm.on_save_checkpoint(trainer, model, {})


def test_names_of_many_samples_are_cut(packs) -> None:
    sample = packs(0).samples[0]
    assert module._named([sample] * 10).endswith("0-0 (0.png) and 2 more")


@pytest.mark.gpu
def test_on_a_gpu_the_loss_arrives_without_waiting_or_in_time_if_asked(task, packs, loader) -> None:
    for wait in (False, True):
        model = task()
        trainer = lightning.Trainer(
            accelerator="gpu",
            devices=1,
            max_steps=6,
            logger=False,
            callbacks=[NonFiniteLoss(wait=wait)],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with pytest.raises(TrainingFault, match=r"the loss of step 3 is nan.*2-0") as caught:
            trainer.fit(model, loader([broken(packs(seed)) if seed == 2 else packs(seed) for seed in range(6)]))
        assert ("these make it: 2-0 (2.png);" in str(caught.value)) == wait
        assert torch.isfinite(weights(model)).all() == wait
