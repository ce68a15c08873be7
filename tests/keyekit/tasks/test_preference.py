"""Preference optimisation through a real trainer, beside a loss worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import lightning
import pytest
import torch

from keyekit.data.module import ConversationDataModule
from keyekit.models.weights import save_weights
from keyekit.objectives.preference.dpo import DPO
from keyekit.objectives.preference.mpo import MPO
from keyekit.objectives.preference.simpo import SimPO
from keyekit.optim.schedules import WarmupStableDecay
from keyekit.tasks.preference import PreferenceOptimization
from keyekit.testing.tiny import tiny_record, tiny_vision_language_model

pytestmark = pytest.mark.filterwarnings("ignore")
WORDS = ("red", "blue", "green", "brown", "black", "white")


def network():
    torch.manual_seed(0)
    made = tiny_vision_language_model()
    made.decoder.embed_tokens = torch.nn.Embedding(300, 32)
    made.decoder.lm_head = torch.nn.Linear(32, 300, bias=False)
    made.decoder.vocab_size = 300
    for module in (made.decoder.embed_tokens, made.decoder.lm_head):
        torch.nn.init.normal_(module.weight, std=0.05)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path, Path]:
    """Training pairs, held-out pairs of other numbers, and a folder of weights: short answers are preferred."""
    folder = tmp_path_factory.mktemp("pairs")
    for name, numbers in (("train", range(24)), ("heldout", range(24, 40))):
        records = []
        for n in numbers:
            word = WORDS[n % 6]
            record = tiny_record(f"p{n}", f"which colour {n}", word)
            records.append({**record, "meta": {"rejected": f"{word} {word} {word}"}})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "train.jsonl", folder / "heldout.jsonl", save_weights(network(), folder / "start")


class Losses(lightning.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(outputs["loss"].item())


def run(files, folder, objective, steps: int, packs: int = 1, pack_tokens: int = 400, start: bool = True, **settings):
    train, heldout, weights = files
    task = PreferenceOptimization(
        network(),
        objective,
        learning_rate=3e-3,
        schedule=WarmupStableDecay(1, 0.0),
        init_from=str(weights) if start else None,
        **settings,
    )
    data = ConversationDataModule(
        train=[str(train)],
        heldout_pairs=[str(heldout)],
        vocab_size=300,
        cache=str(folder / "cache"),
        workers=1,
        pack_tokens=pack_tokens,
    )
    losses = Losses()
    trainer = lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=packs,
        callbacks=[losses],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=5,
        default_root_dir=folder,
    )
    trainer.fit(task, data)
    return task, trainer, losses.values


def test_held_out_pairs_are_ordered_after_training(files, tmp_path) -> None:
    task, trainer, losses = run(files, tmp_path, MPO(), steps=60)
    assert trainer.validate(task, trainer.datamodule, verbose=False)[0]["val/preference_accuracy"] > 0.95
    assert losses[-1] < losses[0]
    assert task.preference.quality.delta != 0  # the mean reward of every step reached it


def test_the_first_loss_is_that_of_two_equal_models_and_the_gradient_that_of_the_large_batch(files, tmp_path) -> None:
    _, _, losses = run(files, tmp_path, DPO(), steps=1, pack_tokens=4000)
    assert losses[0] == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-5)  # -log sigmoid(0)
    whole, _, _ = run(files, tmp_path, DPO(), steps=2, pack_tokens=4000)
    pieces, _, values = run(files, tmp_path, DPO(), steps=2, pack_tokens=800, packs=10)
    assert len(values) > 4
    for name, parameter in whole.network.named_parameters():
        torch.testing.assert_close(dict(pieces.network.named_parameters())[name], parameter, rtol=1e-3, atol=2e-5)


def test_a_reference_needs_weights_and_simpo_needs_none(files, tmp_path) -> None:
    with pytest.raises(ValueError, match="MPO compares with a reference: give the folder"):
        run(files, tmp_path, MPO(), steps=1, start=False)
    task, _, _ = run(files, tmp_path, SimPO(), steps=1, start=False)
    assert not task._reference
