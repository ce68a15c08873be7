"""Distillation on given answers: with a teacher at hand, in files, and inside its layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import lightning
import pytest
import torch

from keyekit.data.module import ConversationDataModule
from keyekit.objectives.distillation.attention_maps import AttentionMatching
from keyekit.objectives.distillation.hidden_states import HiddenStateMatching
from keyekit.objectives.distillation.matching import ReverseKL
from keyekit.objectives.distillation.mopd import MOPD
from keyekit.optim.schedules import WarmupStableDecay
from keyekit.rollout.lessons import TeachersFailed
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.rollout.teachers.recorded import RecordedTeacher, record
from keyekit.tasks.offline_distillation import Distillation
from keyekit.testing.tiny import tiny_record, tiny_vision_language_model

pytestmark = pytest.mark.filterwarnings("ignore")


def make_network(seed: int, sharp: float = 0.02):
    torch.manual_seed(seed)
    network = tiny_vision_language_model()
    network.decoder.embed_tokens = torch.nn.Embedding(300, 32)
    network.decoder.lm_head = torch.nn.Linear(32, 300, bias=False)
    torch.nn.init.normal_(network.decoder.lm_head.weight, std=sharp)
    network.decoder.vocab_size = 300
    return network


@pytest.fixture
def data(tmp_path) -> ConversationDataModule:
    path = tmp_path / "train.jsonl"
    words = ["apple pie", "brick wall", "crypt", "an ounce of prevention"]
    records = [tiny_record(f"q{n}", f"say {word} {n}", word) for n, word in enumerate(words * 3)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return ConversationDataModule(
        train=[str(path)], vocab_size=300, cache=str(tmp_path / "cache"), workers=1, pack_tokens=256
    )


class Watch(lightning.Callback):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def fit(data, folder, teacher, steps: int = 12, **settings) -> list[dict[str, float]]:
    task = Distillation(make_network(0), teacher, learning_rate=1e-2, schedule=WarmupStableDecay(1, 0.0), **settings)
    watch = Watch()
    trainer = lightning.Trainer(
        max_steps=steps,
        callbacks=[watch],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.fit(task, data)
    return watch.seen


def test_the_divergence_from_a_teacher_at_hand_falls(data, tmp_path) -> None:
    seen = fit(data, tmp_path, LocalTeacher.of(make_network(1, 0.6)), steps=25, answer_weight=0.1)
    assert seen[-1]["train/divergence"] < 0.6 * seen[0]["train/divergence"]
    assert {"train/answer_loss", "train/agreement", "train/loss"} <= seen[0].keys()


def test_a_recording_of_all_words_teaches_what_the_teacher_does(data, tmp_path) -> None:
    teacher = LocalTeacher.of(make_network(1, 0.6))
    data.prepare_data()
    data.setup("fit")
    record(teacher, data.train_dataloader(), tmp_path / "said", topk=300)
    live = fit(data, tmp_path, teacher, objective=ReverseKL())
    stored = fit(data, tmp_path, RecordedTeacher(str(tmp_path / "said")), objective=ReverseKL(), topk=300)
    for one, other in zip(live, stored, strict=True):
        assert one["train/divergence"] == pytest.approx(other["train/divergence"], rel=1e-3)


def test_hidden_states_and_attention_follow_those_of_the_teacher(data, tmp_path) -> None:
    settings = {
        "hidden_states": HiddenStateMatching(),
        "hidden_layers": [(1, 1)],
        "hidden_weight": 5.0,
        "attention": AttentionMatching(),
        "attention_layers": [(0, 0), (1, 1)],
        "attention_weight": 5.0,
    }
    seen = fit(data, tmp_path, LocalTeacher.of(make_network(1, 0.6)), steps=25, **settings)
    assert seen[-1]["train/hidden_states"] < 0.8 * seen[0]["train/hidden_states"]
    assert seen[-1]["train/attention_divergence"] < seen[0]["train/attention_divergence"]


class Forgetful(RecordedTeacher):
    """A teacher elsewhere that has an answer for every second sample."""

    def __init__(self) -> None:
        super().__init__("nowhere")
        self.inner = LocalTeacher.of(make_network(1, 0.6))

    def vocabulary(self) -> None:
        return None

    def score(self, batch, topk, asked=None):
        scores = self.inner.score(batch, topk, asked)
        return replace(scores, answered=tuple(number % 2 == 0 for number in range(len(batch.samples))))


def test_samples_that_nobody_read_are_left_out_and_counted_until_there_are_too_many(data, tmp_path) -> None:
    seen = fit(data, tmp_path, Forgetful(), steps=3, max_dropped=0.6)
    assert 0.3 < seen[-1]["train/unread"] <= 0.5
    with pytest.raises(TeachersFailed, match=r"samples were read by no teacher, 10% are allowed"):
        fit(data, tmp_path, Forgetful(), steps=12, max_dropped=0.1)


def test_what_cannot_work_is_refused(tmp_path) -> None:
    network, teacher = tiny_vision_language_model(), LocalTeacher.of(make_network(1))
    for settings, message in (
        ({"objective": MOPD()}, "take OnPolicyDistillation"),
        ({"hidden_layers": [(0, 0)]}, "both how they are compared and hidden_layers are needed"),
        ({"attention": AttentionMatching()}, "both how they are compared and attention_layers are needed"),
        ({"topk": 0}, "need topk >= 1"),
        ({"answer_weight": -1.0}, "weights that are not negative"),
    ):
        with pytest.raises(ValueError, match=message):
            Distillation(network, teacher, **settings)
    with pytest.raises(ValueError, match="hidden_layers need a teacher in the process"):
        Distillation(
            network, RecordedTeacher(str(Path("x"))), hidden_states=HiddenStateMatching(), hidden_layers=[(0, 0)]
        )
