"""Loss by source: equal to the cross-entropy of each source's targets, and without a trace in the training."""

from __future__ import annotations

from dataclasses import replace

import lightning
import pytest
import torch
from torch import nn
from torch.nn import functional

from keyekit.batch import Batch, SampleInfo, Segments
from keyekit.callbacks.source_loss import SourceLoss
from keyekit.objectives.cross_entropy import CrossEntropy

SOURCES = ("web", "clips", "web")
BOUNDS = ((0, 5), (5, 9), (9, 16))


def pack(seed: int) -> Batch:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 11, (20,), generator=random)
    labels[torch.rand(20, generator=random) < 0.3] = -100
    labels[16:] = -100
    samples = tuple(
        SampleInfo(id=f"{seed}-{number}", task="task", start=start, stop=stop, meta={"source": source})
        for number, (source, (start, stop)) in enumerate(zip(SOURCES, BOUNDS, strict=True))
    )
    return Batch(
        tokens=torch.randint(0, 11, (20,), generator=random),
        labels=labels,
        positions=torch.zeros(3, 20, dtype=torch.int64),
        segments=Segments.of([5, 4, 7, 4]),
        vision=None,
        vision_index=torch.zeros(0, dtype=torch.int64),
        samples=samples,
        num_targets=int((labels != -100).sum()),
    )


class Model(lightning.LightningModule):
    """Embeds and classifies; notes what the losses of each source should be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head, self.objective = nn.Embedding(11, 6), nn.Linear(6, 11, bias=False), CrossEntropy()
        self.expected: list[dict[str, float]] = []

    def training_step(self, batch: Batch, batch_idx: int):
        hidden = self.embed(batch.tokens)
        each = functional.cross_entropy(self.head(hidden).double(), batch.labels, reduction="none").detach()
        losses = {}
        for source in {sample.meta.get("source", sample.task) for sample in batch.samples}:
            places = [
                place
                for sample in batch.samples
                if sample.meta.get("source", sample.task) == source
                for place in range(sample.start, sample.stop)
                if batch.labels[place] != -100
            ]
            losses[source] = each[places].mean().item()
        self.expected.append(losses)
        return self.objective(hidden, self.head.weight, batch.labels, batch.num_targets) / max(batch.num_targets, 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Logged(lightning.Callback):
    """Keeps what was logged at each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.steps.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fit(batches: list[Batch], callbacks: list, every: int = 1) -> Model:
    model = Model()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=every, callbacks=callbacks, **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch))
    return model


@pytest.mark.filterwarnings("ignore")
def test_losses_are_those_of_each_sources_targets() -> None:
    logged = Logged()
    model = fit([pack(seed) for seed in range(4)], [SourceLoss(), logged])
    for found, expected in zip(logged.steps, model.expected, strict=True):
        for source in ("web", "clips"):
            assert found[f"train/loss_of/{source}"] == pytest.approx(expected[source], rel=1e-5)
    last = pack(3)
    assert logged.steps[-1]["train/targets_of/clips"] == int((last.labels[5:9] != -100).sum())


@pytest.mark.filterwarnings("ignore")
def test_training_is_the_same_with_and_without() -> None:
    batches = [pack(seed) for seed in range(5)]
    models = [fit(batches, callbacks) for callbacks in ([], [SourceLoss()])]
    for plain, watched in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(plain, watched)
    assert not models[1].objective._forward_hooks


@pytest.mark.filterwarnings("ignore")
def test_only_logged_steps_are_measured_and_samples_without_source_count_by_task() -> None:
    named = pack(0)
    unnamed = replace(named, samples=tuple(replace(sample, meta={}) for sample in named.samples))
    empty = replace(named, samples=(), labels=torch.full((20,), -100), num_targets=0)
    logged = Logged()
    fit([named, unnamed, empty, empty], [SourceLoss(), logged], every=2)
    assert logged.steps[0] == {}
    assert set(logged.steps[1]) == {"train/loss_of/task", "train/targets_of/task"}


@pytest.mark.filterwarnings("ignore")
def test_a_task_without_objective_is_refused() -> None:
    class Plain(Model):
        def __init__(self) -> None:
            super().__init__()
            del self.objective

    trainer = lightning.Trainer(accelerator="cpu", logger=False)
    with pytest.raises(TypeError, match="Plain has none"):
        SourceLoss().on_train_start(trainer, Plain())
