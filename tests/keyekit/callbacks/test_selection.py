"""Recall on held-out packs: when it is measured, and that measuring disturbs nothing."""

from __future__ import annotations

from functools import partial

import lightning
import pytest
import torch

from keyekit.callbacks.selection import SelectionRecall
from keyekit.nn.attention.dense import Dense
from keyekit.nn.attention.dsa import DSA
from keyekit.testing.tiny import tiny_batch, tiny_vision_language_model

SPARSE = partial(DSA, topk=4, num_indexer_heads=2, indexer_head_dim=16, mode="dense_warmup", recall_rows=0)


class Task(lightning.LightningModule):
    """Trains the indexers of a tiny network."""

    def __init__(self, attention=SPARSE) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = tiny_vision_language_model(attention)

    def training_step(self, batch, batch_idx):
        losses = self.network(batch).losses
        return sum(losses.values(), start=self.network.decoder.norm.weight.sum() * 0.0)

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Batches:
    """A sized loader."""

    def __init__(self, batches) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Data(lightning.LightningDataModule):
    def train_dataloader(self):
        return Batches([tiny_batch(seed=seed) for seed in range(4)])

    def val_dataloader(self):
        return Batches([tiny_batch(seed=seed) for seed in (8, 9, 10)])


def test_recall_of_every_layer_is_logged_before_during_and_after(make_trainer, scalars) -> None:
    trainer = make_trainer(SelectionRecall(every_n_steps=2, packs=2), max_steps=5)
    trainer.fit(Task(), datamodule=Data())
    logged = {tag: values for tag, values in scalars().items() if "dsa_recall" in tag}
    kinds = ("dsa_recall", "dsa_recall_last", "dsa_recall_random")
    assert set(logged) == {f"val/{kind}/{index}" for kind in kinds for index in (0, 1)}
    assert {len(values) for values in logged.values()} == {4}  # steps 0, 2, 4 and 5
    assert all(0 < value <= 1 for values in logged.values() for value in values)
    assert len(set(logged["val/dsa_recall/0"])) > 1
    for kind in ("last", "random"):  # the first layer's attention never changes here, and the draw is the same
        assert len(set(logged[f"val/dsa_recall_{kind}/0"])) == 1
    assert trainer.callback_metrics["val/dsa_recall/1"].item() == pytest.approx(logged["val/dsa_recall/1"][-1])


def test_measuring_changes_no_training(make_trainer) -> None:
    weights = []
    for callbacks in ((), (SelectionRecall(every_n_steps=1),)):
        task = Task()
        torch.manual_seed(1)
        make_trainer(*callbacks).fit(task, datamodule=Data())
        assert task.network.training
        assert not any(module._forward_pre_hooks for module in task.network.modules())
        weights.append(torch.cat([parameter.detach().flatten() for parameter in task.parameters()]))
    assert torch.equal(*weights)


def test_accumulated_gradients_are_one_step(make_trainer, scalars) -> None:
    trainer = make_trainer(SelectionRecall(every_n_steps=1), max_steps=2)
    trainer.accumulate_grad_batches = 2
    trainer.fit(Task(), datamodule=Data())
    assert len(scalars()["val/dsa_recall/0"]) == 3


@pytest.mark.parametrize("what", ["attention layer", "held-out pack"])
def test_nothing_to_measure_is_said(what: str, make_trainer, scalars) -> None:
    class NoHeldOut(Data):
        def val_dataloader(self):
            return []

    task, data = (Task(Dense), Data()) if what == "attention layer" else (Task(), NoHeldOut())
    with pytest.warns(UserWarning, match=what):
        make_trainer(SelectionRecall()).fit(task, datamodule=data)
    assert not any("dsa_recall" in tag for tag in scalars())


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="packs=0"):
        SelectionRecall(packs=0)
