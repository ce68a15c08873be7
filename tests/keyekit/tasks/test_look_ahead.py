"""The packs of a step are read before it, and accumulated steps are those of one large batch."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from keyekit.optim.schedules import WarmupCosine
from keyekit.tasks.language_modeling import LanguageModeling
from keyekit.tasks.look_ahead import LookAhead
from keyekit.testing.equalities import Packs
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTHS = ((9, 14), (30, 5), (4, 3), (8, 8), (12, 21), (5, 5), (7, 30))


def packs() -> list:
    return [tiny_batch(lengths=lengths, grids=(None, None), seed=i) for i, lengths in enumerate(LENGTHS)]


def fake_trainer(accumulate: int, batches: int, ready: int = 0) -> SimpleNamespace:
    progress = SimpleNamespace(current=SimpleNamespace(ready=ready))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress), max_batches=batches)
    return SimpleNamespace(fit_loop=loop, accumulate_grad_batches=accumulate, should_stop=False)


class Taken:
    """A loader that counts what was taken from it, and ends the fit when it is used up."""

    def __init__(self, batches: list, trainer: SimpleNamespace | None = None) -> None:
        self.batches = batches
        self.trainer = trainer
        self.taken = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.taken += 1
            if self.trainer is not None and self.taken == len(self.batches):
                self.trainer.should_stop = True
            yield batch


def test_targets_of_a_whole_step_are_known_at_its_first_pack_and_no_further_pack_is_read():
    batches = packs()
    targets = [batch.num_targets for batch in batches]
    loader = Taken(batches)
    ahead = LookAhead(loader, fake_trainer(3, len(batches)))
    assert len(ahead) == 7
    for number, batch in enumerate(ahead):
        assert batch is batches[number]
        start = number - number % 3
        assert ahead.targets == tuple(targets[start : start + 3])
        assert loader.taken == min(start + 3, 7)
    assert number == 6


def test_a_resumed_epoch_and_a_limited_one_have_shorter_steps():
    ahead = LookAhead(Taken(packs()), fake_trainer(3, batches=7, ready=2))
    assert [len(ahead.targets) for _ in ahead][:5] == [1, 3, 3, 3, 1]
    loader = Taken(packs())
    iterator = iter(LookAhead(loader, fake_trainer(3, batches=4)))
    for _ in range(4):
        next(iterator)
    assert loader.taken == 4, "packs beyond the limit belong to the next epoch"


def test_a_loader_that_ends_the_fit_does_so_at_the_last_pack():
    trainer = fake_trainer(4, 7)
    stops = []
    for _ in LookAhead(Taken(packs(), trainer), trainer):
        stops.append(trainer.should_stop)
    assert stops == [False] * 6 + [True]


def test_the_loader_shows_through():
    loader = Taken(packs())
    assert LookAhead(loader, fake_trainer(2, 7)).batches is loader.batches
    with pytest.raises(AttributeError):
        _ = LookAhead(loader, fake_trainer(2, 7)).state_dict


class Stop(lightning.Callback):
    """Keeps the checkpoint of the first step."""

    def on_train_batch_end(self, trainer, *arguments) -> None:
        if trainer.global_step == 1:
            self.checkpoint = trainer._checkpoint_connector.dump_checkpoint()
            trainer.should_stop = True


def test_a_checkpoint_holds_the_position_of_the_loader(tmp_path):
    """From Python 3.12 on, Lightning asks the class for the methods and not the object."""
    task = LanguageModeling(tiny_vision_language_model().double(), learning_rate=0.0)
    options = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    stop = Stop()
    trainer = lightning.Trainer(accumulate_grad_batches=3, accelerator="cpu", callbacks=[stop], max_epochs=1, **options)
    trainer.fit(task, Packs())
    (state,) = stop.checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert state["position"] == 3
    (loader,) = trainer.fit_loop._combined_loader.flattened
    for name in ("state_dict", "load_state_dict"):
        assert callable(inspect.getattr_static(loader, name))


def gradients_of_steps(accumulate: int, batches: list) -> list[torch.Tensor]:
    torch.manual_seed(0)
    task = LanguageModeling(tiny_vision_language_model().double(), learning_rate=0.0, schedule=WarmupCosine(0))
    kept: list[torch.Tensor] = []
    task.on_before_optimizer_step = lambda _: kept.append(task.network.decoder.lm_head.weight.grad.clone())
    trainer = lightning.Trainer(
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(task, DataLoader(batches, batch_size=None))
    return kept


def test_every_accumulated_step_is_the_mean_over_its_targets_also_the_short_last_one():
    batches = packs()
    found = gradients_of_steps(3, batches)
    assert len(found) == 3
    torch.manual_seed(0)
    task = LanguageModeling(tiny_vision_language_model().double())
    weight = task.network.decoder.lm_head.weight
    for gradient, members in zip(found, (batches[:3], batches[3:6], batches[6:]), strict=True):
        task.zero_grad()
        for batch in members:
            task.objective(task.network(batch).hidden, weight, batch.labels, batch.num_targets).backward()
        expected = weight.grad / sum(batch.num_targets for batch in members)
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_a_loader_without_a_length_is_refused_with_accumulation():
    task = LanguageModeling(tiny_vision_language_model())
    trainer = lightning.Trainer(
        max_steps=1, accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False
    )
    with pytest.raises(TypeError, match="one training loader that has a length"):
        trainer.fit(task, iter(packs()))


def test_loaders_that_are_made_anew_are_refused_with_accumulation():
    task = LanguageModeling(tiny_vision_language_model())
    trainer = lightning.Trainer(
        max_steps=1,
        accumulate_grad_batches=2,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    with pytest.raises(ValueError, match="reload_dataloaders_every_n_epochs=0"):
        trainer.fit(task, DataLoader(packs(), batch_size=None))
