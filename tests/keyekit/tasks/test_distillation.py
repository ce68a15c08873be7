"""On-policy distillation through a real trainer: the student becomes its teachers, and an interrupted run goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lightning
import pytest
import torch

from keyekit.data.module import ConversationDataModule
from keyekit.data.vocabulary import Vocabulary
from keyekit.nn.attention.dsa import DSA
from keyekit.nn.moe.mixture import MixtureOfExperts
from keyekit.objectives.distillation.matching import ReverseKL
from keyekit.objectives.distillation.mopd import MOPD
from keyekit.optim.schedules import WarmupStableDecay
from keyekit.rollout.lessons import TeachersFailed
from keyekit.rollout.teachers.base import Scores
from keyekit.rollout.teachers.local import LocalTeacher
from keyekit.rollout.teachers.remote import RemoteTeacher
from keyekit.rollout.teachers.server import TeacherServer
from keyekit.tasks.distillation import OnPolicyDistillation
from keyekit.testing.tiny import tiny_record, tiny_vision_language_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "train.jsonl"
    words = ["apple", "brick", "crypt", "ounce"]
    records = [tiny_record(f"q{n}", f"say {word} {n}", word, task=f"kind{n % 2}") for n, word in enumerate(words * 4)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def make_network(seed: int, sharp: float = 0.02, parts=None):
    torch.manual_seed(seed)
    network = tiny_vision_language_model(**(parts or {}))
    network.decoder.embed_tokens = torch.nn.Embedding(300, 32)
    network.decoder.lm_head = torch.nn.Linear(32, 300, bias=False)
    torch.nn.init.normal_(network.decoder.lm_head.weight, std=sharp)
    network.decoder.vocab_size = 300
    return network


def teachers(sharp: float = 0.8):
    return {f"kind{n}": LocalTeacher.of(make_network(n + 1, sharp)) for n in (0, 1)}


class Watch(lightning.Callback):
    """Keeps losses and advantages; may save and stop in the middle of a round."""

    def __init__(self, cut: int | None = None, folder: Path | None = None) -> None:
        self.losses: list[float] = []
        self.advantages: list[float] = []
        self.unread: list[float] = []
        self.cut = cut
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())
        if "train/advantage" in trainer.callback_metrics:
            self.advantages.append(trainer.callback_metrics["train/advantage"].item())
        if batch.meters:
            self.unread.append(batch.meters["unread"])
        if trainer.global_step == self.cut and len(self.losses) % trainer.accumulate_grad_batches == 0:
            trainer.save_checkpoint(self.folder / "cut.ckpt")
            trainer.should_stop = True


def fit(questions, folder, objective, steps: int, resume=None, cut=None, parts=None, taught=None, **settings):
    packs = settings.pop("packs", 1)
    network = make_network(0, parts=parts)
    settings = {"prompts_per_round": 8, "responses": 2, "max_new_tokens": 5, "learning_rate": 1e-2} | settings
    task = OnPolicyDistillation(
        network, taught or teachers(), objective, schedule=WarmupStableDecay(1, 0.0), **settings
    )
    watch = Watch(cut, folder)
    data = ConversationDataModule(train=[str(questions)], vocab_size=300, cache=str(folder / "cache"), workers=1)
    trainer = lightning.Trainer(
        max_steps=steps,
        accumulate_grad_batches=packs,
        callbacks=[watch],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        gradient_clip_val=1.0,
        default_root_dir=folder,
    )
    trainer.fit(task, data, ckpt_path=resume, weights_only=False)
    return watch


def test_credit_to_words_brings_the_student_to_its_teachers_and_the_printed_formula_does_not(
    questions, tmp_path
) -> None:
    learnt = fit(questions, tmp_path, None, steps=25, topk=300)
    started, ended = -sum(learnt.advantages[:3]) / 3, -sum(learnt.advantages[-3:]) / 3
    assert ended < 0.6 * started
    printed = fit(questions, tmp_path, MOPD(), steps=25, topk=300)
    assert -sum(printed.advantages[-3:]) / 3 > 0.8 * started


@pytest.mark.parametrize(
    ("objective", "cut"),
    [
        (partial(MOPD, credit="words", repetition_penalty=0.5), 2),
        (partial(MOPD, mode="teacher_on_student", credit="words"), 3),
        (ReverseKL, 3),
    ],
    ids=["between rounds", "in a round", "another objective"],
)
def test_an_interrupted_run_goes_on_to_the_bit(questions, tmp_path, objective, cut) -> None:
    parts = {
        "attention": partial(DSA, topk=6, num_indexer_heads=2, indexer_head_dim=8),
        "feed_forward": partial(MixtureOfExperts, num_experts=4, active_experts=2, expert_dim=24),
    }
    settings = {"steps_per_round": 2, "packs": 2, "parts": parts}
    whole = fit(questions, tmp_path, objective(), steps=6, **settings)
    first = fit(questions, tmp_path, objective(), steps=6, cut=cut, **settings)
    rest = fit(questions, tmp_path, objective(), steps=6, resume=str(tmp_path / "cut.ckpt"), **settings)
    assert len(whole.losses) == 12
    assert any(whole.losses)
    assert first.losses + rest.losses == whole.losses


@contextmanager
def served(teacher: LocalTeacher) -> Iterator[str]:
    """Address of a server that holds the teacher meanwhile."""
    with TeacherServer(teacher, "secret") as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("mode", ["overlap", "teacher_on_student"])
def test_a_teacher_behind_a_server_teaches_what_it_teaches_at_hand(questions, tmp_path, monkeypatch, mode) -> None:
    monkeypatch.setenv("KEYEKIT_TEACHER_TOKEN", "secret")
    data = ConversationDataModule(train=[str(questions)], vocab_size=300, cache=str(tmp_path / "cache"), workers=1)
    data.prepare_data()
    data.setup("predict")  # the tokenizer of the fits
    teacher = LocalTeacher.of(make_network(1, 0.8), data.tokenizer)
    objective = partial(MOPD, mode=mode, credit="words", repetition_penalty=0.5)
    settings = {"steps_per_round": 2, "packs": 2}
    near = fit(questions, tmp_path, objective(), steps=4, taught={"*": teacher}, **settings)
    with served(teacher) as url:
        remote = RemoteTeacher([url], tries=1, request_tokens=60)  # several requests for each round
        far = fit(questions, tmp_path, objective(), steps=4, taught={"*": remote}, **settings)
    assert set(near.unread) == set(far.unread) == {0.0}
    assert len(near.losses) == 8
    assert len(set(near.losses)) == 8
    assert far.losses == pytest.approx(near.losses, rel=1e-4, abs=1e-6)


class Broken(LocalTeacher):
    """A teacher that has no answer for some of what it is asked."""

    def score(self, batch, topk, asked=None) -> Scores:
        scores = super().score(batch, topk, asked)
        lost = min(self.lost, len(scores.answered))
        return Scores(words=scores.words, answered=(False,) * lost + scores.answered[lost:], meters={})


def broken(lost: int) -> Broken:
    teacher = Broken.of(make_network(1, 0.8))
    teacher.lost = lost
    return teacher


def test_answers_that_nobody_read_are_left_out_and_counted_until_there_are_too_many(questions, tmp_path) -> None:
    watch = fit(questions, tmp_path, None, steps=2, taught={"*": broken(1)}, max_dropped=0.1)
    assert watch.unread == [1 / 16, 1 / 16]
    with pytest.raises(TeachersFailed, match=r"4 of 16 answers of a round were read by no teacher, 10% are allowed"):
        fit(questions, tmp_path, None, steps=2, taught={"*": broken(4)}, max_dropped=0.1)
    watch = fit(questions, tmp_path, None, steps=1, taught={"*": broken(16)}, max_dropped=1.0)
    assert watch.losses == [0.0]


class Foreign(LocalTeacher):
    """A teacher of another vocabulary."""

    def vocabulary(self) -> Vocabulary:
        return Vocabulary(("a", "b"))


def test_what_cannot_work_is_refused_before_anything_is_drawn(questions, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"no teacher for text/kind1 \(8 samples\)"):
        fit(questions, tmp_path, None, steps=1, taught={"kind0": broken(0)})
    with pytest.raises(
        ValueError, match=r"teacher 'kind1' has another vocabulary: 2 tokens where the student has \d+; 2 of"
    ):
        fit(questions, tmp_path, None, steps=1, taught={"kind0": broken(0), "kind1": Foreign.of(make_network(2))})
    network = tiny_vision_language_model()
    for settings, message in (
        ({"max_dropped": 2.0}, "max_dropped=2.0 is a share"),
        ({"topk": 0}, "topk=0"),
        ({"categories": {"a": "x"}}, r"categories name \['a'\], the objective has factors for \[\]"),
        ({"categories": {"a": "x"}, "objective": ReverseKL()}, "ReverseKL knows no categories"),
        ({"objective": ReverseKL(whose="student")}, "needs a teacher's hidden states"),
    ):
        with pytest.raises(ValueError, match=message):
            OnPolicyDistillation(network, teachers(), **settings)


def test_the_printed_formula_alone_warns() -> None:
    network = tiny_vision_language_model()
    with pytest.warns(UserWarning, match="on average it teaches nothing"):
        OnPolicyDistillation(network, teachers(), MOPD())
