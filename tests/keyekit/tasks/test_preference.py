"""Preference optimisation through a real trainer, beside a loss worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import lightning
import pytest
import torch

from keyekit.data.errors import BadData, ErrorPolicy
from keyekit.data.loader import PackLoader
from keyekit.data.module import ConversationDataModule
from keyekit.data.preferences import PreferenceDataset
from keyekit.data.reference_log_probs import ReferenceLogProbs, reference_file
from keyekit.data.sources import read_jsonl
from keyekit.models.weights import save_weights
from keyekit.models.weights.digest import weights_digest
from keyekit.objectives.preference.bco import BCO
from keyekit.objectives.preference.dpo import DPO
from keyekit.objectives.preference.ipo import IPO
from keyekit.objectives.preference.kto import KTO
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


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (DPO(0.3), math.log(2)),  # -log sigmoid(0)
        (IPO(0.5), 1.0),  # (0 - 1 / (2 beta))²
        (BCO(0.3), 2 * math.log(2)),  # both responses at the threshold, which begins at 0
        (KTO(0.3, 1.3, 0.8), (1.3 + 0.8) / 2 * 0.5),  # 1 - sigmoid(0), as many good responses as bad ones
        (KTO(0.3, 1.3, 0.8, "zero"), (1.3 + 0.8) / 2 * 0.5),
    ],
    ids=["dpo", "ipo", "bco", "kto", "kto-zero"],
)
def test_the_first_loss_is_that_of_two_equal_models(files, tmp_path, objective, expected) -> None:
    _, _, losses = run(files, tmp_path, objective, steps=2)
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[1] != losses[0]


def test_packs_of_a_step_have_the_gradient_of_the_large_batch(files, tmp_path) -> None:
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


def test_an_objective_that_pairs_cannot_feed_is_refused_before_the_first_step(files, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"reference_point='mismatched'.* packs of pairs do not have: choose 'batch'"):
        run(files, tmp_path, KTO(reference_point="mismatched"), steps=1)


def written(files, folder) -> list[str]:
    """What the reference says of the pairs, as the command writes it."""
    train, heldout, weights = files
    task, trainer, _ = run(files, folder, MPO(), steps=0)
    names = []
    for file in (train, heldout):
        samples = read_jsonl(file, ErrorPolicy("raise"))
        pairs = PreferenceDataset(samples, trainer.datamodule.encoder, ErrorPolicy("raise"), 400)
        task.network.load_state_dict(network().state_dict())
        rows = [row for pack in trainer.predict(task, PackLoader(pairs, 400, shuffle=False)) for row in pack]
        known = ReferenceLogProbs(
            weights=weights_digest(weights), values={pair: tuple(both) for pair, _, *both in rows}
        )
        known.write(folder / reference_file(file).name, {pair: name for pair, name, *_ in rows})
        names.append(str(folder / reference_file(file).name))
    return names


def test_a_reference_from_files_trains_bit_for_bit_as_a_live_one(files, tmp_path) -> None:
    names = written(files, tmp_path)
    live, trainer, losses = run(files, tmp_path, MPO(), steps=8)
    stored, other, values = run(files, tmp_path, MPO(), steps=8, reference_files=names)
    assert not stored._reference
    assert values == losses
    assert all(map(torch.equal, stored.state_dict().values(), live.state_dict().values()))
    metrics = [t.validate(task, t.datamodule, verbose=False)[0] for task, t in ((live, trainer), (stored, other))]
    assert metrics[0] == metrics[1]
    assert {"val/preference_likelier", "val/preference_likelier_before"} <= metrics[0].keys()


def test_files_of_other_weights_or_pairs_are_refused(files, tmp_path) -> None:
    names = written(files, tmp_path)
    train, heldout, weights = files
    moved = network()
    torch.nn.init.zeros_(moved.decoder.lm_head.weight)
    elsewhere = save_weights(moved, tmp_path / "moved")
    with pytest.raises(ValueError, match=r"say what other weights than .*moved make of the pairs"):
        run((train, heldout, elsewhere), tmp_path, MPO(), steps=1, reference_files=names)
    changed = tmp_path / "changed.jsonl"
    changed.write_text(train.read_text().replace("which colour 3", "what colour 3"))
    with pytest.raises(BadData, match=r"1 of 24 pairs, such as p3: the reference never saw this pair"):
        run((changed, heldout, weights), tmp_path, MPO(), steps=1, reference_files=names)
