from __future__ import annotations

from dataclasses import replace

import lightning
import pytest

from keyekit.callbacks.alarms import RepeatedSamples, TrainingFault
from keyekit.data.loader import StatefulLoader


class Packs(StatefulLoader):
    """Epochs of ten packs, whose samples are all different."""

    def __init__(self, make) -> None:
        super().__init__()
        self.make = make

    def __len__(self) -> int:
        return 10

    def batch(self, epoch: int, position: int):
        return self.make((3 * position + epoch) % 10)  # another order in every epoch


class Forgetful(Packs):
    """Begins the epoch again after a resume."""

    def load_state_dict(self, state) -> None:
        pass


class AlwaysTheSame(Forgetful):
    """A small source that comes round in every pack."""

    def batch(self, epoch: int, position: int):
        return self.make(0)


class Saver(lightning.Callback):
    """Saves after a step, as a run that will be killed does."""

    def __init__(self, folder, step: int) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.folder / "cut.ckpt")


def fit(task, loader, folder, stop: int, resume=None):
    alarm = RepeatedSamples()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=stop,
        logger=False,
        callbacks=[alarm, Saver(folder, stop)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, loader, ckpt_path=resume, weights_only=False)
    return alarm


@pytest.mark.filterwarnings("ignore")
def test_a_loader_that_begins_again_stops_the_resumed_run(task, packs, tmp_path) -> None:
    fit(task(), Packs(packs), tmp_path, 6)
    with pytest.raises(TrainingFault) as caught:
        fit(task(), Forgetful(packs), tmp_path, 16, tmp_path / "cut.ckpt")
    message = str(caught.value)
    assert "RepeatedSamples at step 10: 8 of the first 8 samples after the resume came before the checkpoint" in message
    assert "such as 9-0, 9-1); before it 0% of the samples repeated" in message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cut", [6, 10, 13])
def test_a_loader_that_goes_on_is_no_fault_within_or_between_epochs(task, packs, tmp_path, cut) -> None:
    first = fit(task(), Packs(packs), tmp_path, cut)
    assert len(first._seen) == 2 * (cut % 10)  # those of a finished epoch are forgotten
    resumed = fit(task(), Packs(packs), tmp_path, 25, tmp_path / "cut.ckpt")
    assert resumed._compared >= (0 if cut == 10 else 8)


@pytest.mark.filterwarnings("ignore")
def test_samples_that_always_repeat_are_no_fault(task, packs, tmp_path) -> None:
    fit(task(), AlwaysTheSame(packs), tmp_path, 6)
    fit(task(), AlwaysTheSame(packs), tmp_path, 12, tmp_path / "cut.ckpt")


def test_memory_is_bounded_and_sources_have_names_of_their_own(packs) -> None:
    alarm = RepeatedSamples(memory=3)
    for seed in range(5):
        alarm.on_train_batch_start(None, None, packs(seed), seed)  # pyright: ignore[reportArgumentType]
    state = alarm.state_dict()
    assert len(state["seen"]) == 3 * 8
    assert (state["samples"], state["repeats"]) == (10, 0)
    pack = packs(4)
    elsewhere = replace(pack, samples=tuple(replace(s, meta={"source": "web"}) for s in pack.samples))
    alarm.on_train_batch_start(None, None, elsewhere, 5)  # pyright: ignore[reportArgumentType]
    assert alarm.state_dict()["repeats"] == 0
    alarm.on_train_batch_start(None, None, elsewhere, 6)  # pyright: ignore[reportArgumentType]
    assert alarm.state_dict()["repeats"] == 2


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="memory=0"):
        RepeatedSamples(memory=0)
